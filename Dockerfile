# syntax=docker/dockerfile:1
# The production worker, examples/worker.rs. For your own worker, change the two lines with its name.
#
#   docker build -t registry.example.com/projection-worker:0.1.0 .

# The same Debian release as below: the binary needs the C library it was linked with, or a newer one.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches keep what cargo has downloaded and compiled, so that only what changed is compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --example worker && \
    strip -o /projection-worker target/release/examples/worker

# The C library and CA certificates, but no shell and no package manager. TLS is rustls with ring, so no OpenSSL is needed. A static binary
# on an empty image would be about 20 MB smaller, but it would have musl's slower allocator and musl's resolver, and the certificates would
# have to be copied and kept up to date.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /projection-worker /usr/local/bin/projection-worker
# By number, because Kubernetes cannot check whether a user name stands for root.
USER 65532:65532
EXPOSE 9090
# The worker itself is process 1, without a shell in between. So it receives SIGTERM and handles it.
ENTRYPOINT ["/usr/local/bin/projection-worker"]
