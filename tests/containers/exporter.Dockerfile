# The export service's script where nothing has to be trained: in the image that serves
ARG SERVE_IMAGE=tristage
FROM ${SERVE_IMAGE}
USER root
COPY docker/entrypoints/export.sh /usr/local/bin/tristage-export-reference
ENTRYPOINT ["tini", "--", "tristage-export-reference"]
