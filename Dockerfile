# One image for every part: `docker run IMAGE market serve`, `node run`, `chain serve`, `task submit` …
#
# The base is an argument, so that a release names it by digest and this file does not pretend to know one:
#   docker build --build-arg BASE=python:3.12-slim-bookworm@sha256:… -t parity .
# Any image with Python 3.11 to 3.13 and its venv module will do. Every package is checked against requirements/default.lock.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/parity
COPY requirements/default.lock requirements/default.lock
RUN /opt/parity/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r requirements/default.lock
COPY pyproject.toml README.md LICENSE ./
COPY requirements/flower.lock requirements/flower.lock
COPY protocol protocol
COPY blobs blobs
COPY fl fl
COPY contracts/python contracts/python
COPY client client
COPY node node
COPY market market
COPY cli cli
# What builds the package is locked too, so nothing is fetched here; then it goes, and pip with it.
RUN /opt/parity/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index . \
 && /opt/parity/bin/pip uninstall --yes hatchling editables pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="parity-node" \
      org.opencontainers.image.description="A decentralized compute market: nodes, market, embedded chain, command line" \
      org.opencontainers.image.licenses="MIT"
# The numbers are fixed, so that a volume made today belongs to tomorrow's image.
RUN groupadd --gid 10001 parity \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/parity --no-create-home --shell /usr/sbin/nologin parity \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/parity /var/lib/parity-join
COPY --from=build /opt/parity /opt/parity
COPY deploy/health.py /usr/local/bin/parity-health
COPY deploy/set-up-market.sh /usr/local/bin/parity-set-up-market
COPY deploy/set-up-node.sh /usr/local/bin/parity-set-up-node
ENV PATH=/opt/parity/bin:/usr/local/bin:/usr/bin:/bin \
    PARITY_HOME=/var/lib/parity \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/parity
VOLUME /var/lib/parity
STOPSIGNAL SIGTERM
# Of a node that RUNNER_METRICS_PORT lets answer; compose.yaml gives each part its own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["parity-health", "http://127.0.0.1:9464/health"]
ENTRYPOINT ["parity"]
CMD ["--help"]
