# In the place of postgres:VERSION: Debian's PostgreSQL, with as much of that image's entry point as compose.yaml counts on.
FROM miniplm-stand-in/debian
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql \
    && install --directory --owner=postgres --group=postgres /var/lib/postgresql /var/lib/postgresql/data \
    && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
COPY --chmod=755 postgres.sh /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
