# The export service's script where nothing has to be trained: in the image that serves
ARG SERVE_IMAGE=tristage
FROM ${SERVE_IMAGE}
# hadolint ignore=DL3002
USER 0:0
COPY docker/entrypoints/export.sh /usr/local/bin/tristage-export-reference
ENTRYPOINT ["tini", "--", "tristage-export-reference"]
