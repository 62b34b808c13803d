# The image of gridcast: the binary, glibc and its default configuration. No shell, no package manager.
# docs/operating/containers.md says how to run it.
#
#     docker build --tag gridcast .

ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUN_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN packaging/build && mkdir target/packages/data

FROM ${RUN_IMAGE}
COPY --from=build /src/target/packages/gridcast /usr/bin/gridcast
COPY packaging/container.toml /etc/gridcast/gridcast.toml
# The record of client ids. Mount a volume here.
COPY --from=build --chown=65532:65532 /src/target/packages/data /var/lib/gridcast
ENV STATE_DIRECTORY=/var/lib/gridcast
WORKDIR /etc/gridcast
USER 65532:65532
# The API, the edge, the mesh.
EXPOSE 6789/tcp 6790/tcp 6788/udp
STOPSIGNAL SIGTERM
# The image has no shell and no HTTP client, so the binary asks its own node.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["/usr/bin/gridcast", "check", "--health", "--config", "/etc/gridcast/gridcast.toml"]
ENTRYPOINT ["/usr/bin/gridcast"]
CMD ["serve", "--config", "/etc/gridcast/gridcast.toml"]
