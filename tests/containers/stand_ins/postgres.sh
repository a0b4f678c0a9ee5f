#!/bin/bash
# Makes the database of POSTGRES_DB, owned by POSTGRES_USER with POSTGRES_PASSWORD, where there is none; then PostgreSQL, not as root.
set -euo pipefail
data=/var/lib/postgresql/data
as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups)
if [[ ! -f $data/PG_VERSION ]]; then
    chown postgres:postgres "$data"
    "${as_postgres[@]}" initdb --pgdata="$data" --username="$POSTGRES_USER" --auth=scram-sha-256 --encoding=UTF8 \
        --pwfile=<(printf '%s' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    "${as_postgres[@]}" postgres --single -D "$data" postgres <<<"CREATE DATABASE $POSTGRES_DB"
fi
exec "${as_postgres[@]}" postgres -D "$data" -c 'listen_addresses=*' -c unix_socket_directories=
