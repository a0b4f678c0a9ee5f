#!/bin/bash
# Makes the database of POSTGRES_DB, owned by POSTGRES_USER with POSTGRES_PASSWORD, where there is none; then PostgreSQL, not as root.
set -euo pipefail
data=/var/lib/postgresql/data
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [[ ! -f $data/PG_VERSION ]]; then
    chown postgres:postgres "$data"
    password=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" >"$password"
    chown postgres "$password"
    as_postgres initdb --pgdata="$data" --username="$POSTGRES_USER" --auth=scram-sha-256 --encoding=UTF8 --pwfile="$password"
    rm "$password"
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    as_postgres postgres --single -D "$data" postgres <<<"CREATE DATABASE $POSTGRES_DB"
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -D "$data" -c 'listen_addresses=*' -c unix_socket_directories=
