# Alpine. The package creates no cluster and starts no service.
apk add --no-cache postgresql postgresql-contrib
