# Debian, Ubuntu. Only the binaries are needed, so no cluster is created, and no server is started.
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

apt update || true # If one of several sources fails, the others may have it.
offered=$(apt-cache show --no-all-versions postgresql | sed -n 's/^Version: \([0-9]*\).*/\1/p')
if [ "${offered:-0}" -lt "$oldest" ]; then
    echo "apt-get offers PostgreSQL ${offered:-in no version}"
    exit 1
fi
apt install -y --no-install-recommends postgresql-common
conf=/etc/postgresql-common/createcluster.conf
kept=$(mktemp)
cp -p "$conf" "$kept"
trap 'cp -p "$kept" "$conf"; rm "$kept"' EXIT
sed -i '/^[[:space:]]*create_main_cluster/d' "$conf"
echo 'create_main_cluster = false' >>"$conf"
apt install -y --no-install-recommends postgresql
