# Fedora, RHEL. The package creates no cluster and starts no service.
dnf install -y postgresql-server postgresql-contrib
