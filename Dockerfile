# syntax=docker/dockerfile:1
# The production worker, examples/worker.rs. For a worker of your own, change the two lines with its name.
#
#   docker build -t registry.example.com/projection-worker:0.1.0 .

# The same Debian as below: the binary needs the C library it was linked with, or a newer one.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# What cargo has downloaded and compiled stays in caches of the builder, so that a change costs the compilation of what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --example worker && \
    strip -o /projection-worker target/release/examples/worker

# The C library and CA certificates, no shell and no package manager. TLS is rustls with ring, so no OpenSSL is needed. A static binary on
# an empty image would save some 20 MB and cost musl's slower allocator, its resolver, and certificates to be copied and kept current.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /projection-worker /usr/local/bin/projection-worker
# By number: Kubernetes cannot tell whether a name is root's.
USER 65532:65532
EXPOSE 9090
# The worker is process 1 itself, with no shell in between: it gets the SIGTERM, and handles it.
ENTRYPOINT ["/usr/local/bin/projection-worker"]
