# The three services, each in an image of its own: docker-compose.yml builds them by the targets api, gateway and agent.
#
# BASE is a plain Debian, BUILD_BASE one that scripts/setup.sh makes fit for building (it installs Rust if there is none).
# packaging/compose/images.sh makes both where no registry is reachable.
ARG BASE=debian:bookworm-slim
ARG BUILD_BASE=$BASE

FROM $BUILD_BASE AS build
WORKDIR /src
COPY scripts/setup.sh scripts/
COPY Cargo.toml ./
RUN scripts/setup.sh build
COPY . .
# Both in one layer, so that what was compiled on the way is in none.
RUN make web \
    && export PATH="$HOME/.cargo/bin:$PATH" \
    && cargo build --release --locked -p snapshot-api -p snapshot-agent -p snapshot-gateway \
    && mkdir /out && cp target/release/snapshot-api target/release/snapshot-agent target/release/snapshot-gateway /out/ \
    && strip /out/* && rm -rf target gateway/web/node_modules

FROM $BASE AS service
# A service says that it is well on a port of its own, and bash is there anyway.
COPY packaging/compose/healthy /usr/local/bin/healthy

FROM service AS api
RUN useradd --system --uid 981 --no-create-home --shell /usr/sbin/nologin ravada-snapshots-api \
    && install -d -o 981 -g 981 -m 0700 /var/lib/ravada-snapshots/api
COPY packaging/compose/keys /usr/local/bin/keys
COPY --from=build /out/snapshot-api /usr/bin/snapshot-api
USER 981
CMD ["snapshot-api", "serve", "--config", "/etc/ravada-snapshots/api.toml"]

FROM service AS gateway
RUN useradd --system --uid 982 --no-create-home --shell /usr/sbin/nologin ravada-snapshots-gateway
COPY --from=build /out/snapshot-gateway /usr/bin/snapshot-gateway
USER 982
CMD ["snapshot-gateway", "--config", "/etc/ravada-snapshots/gateway.toml"]

# As root: libvirt's embedded driver and QEMU are in it.
FROM service AS agent
COPY scripts/setup.sh /tmp/setup/scripts/
COPY Cargo.toml /tmp/setup/
RUN /tmp/setup/scripts/setup.sh host \
    && rm -rf /tmp/setup /var/lib/apt/lists/*
COPY packaging/compose/qemu.conf /etc/ravada-snapshots/qemu.conf
COPY packaging/compose/agent /usr/local/bin/agent
COPY --from=build /out/snapshot-agent /usr/bin/snapshot-agent
CMD ["agent"]
