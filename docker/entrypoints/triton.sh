#!/bin/sh
# Starts tritonserver as `tristage serve` does, where there is no tristage: in NVIDIA's image. More options may follow.
set -eu
models=${TRISTAGE_REPOSITORY:-/models}
host=${TRISTAGE_HOST:-127.0.0.1}
if ! [ -f "$models/manifest.json" ]; then
  echo "$models holds no exported stack; export one into it: tristage export stack.yaml --target ngc-gpu" >&2
  exit 2
fi
key=${TRISTAGE_ADMIN_KEY:-$(cat /proc/sys/kernel/random/uuid)} # one that nobody knows keeps them closed
case $key in
  *[!A-Za-z0-9_-]*) bad=1 ;;
  ????????????????*) bad= ;;
  *) bad=1 ;;
esac
if [ "$bad" ]; then
  echo "TRISTAGE_ADMIN_KEY must be 16 or more letters, digits, - or _; make one with: openssl rand -hex 32" >&2
  exit 2
fi
restricted=shared-memory,trace,logging:tristage-admin-key=$key
case ${TRISTAGE_PERCENTILES:-0} in 1 | true | yes | on) percentiles=true ;; *) percentiles=false ;; esac
if [ "${TRISTAGE_TRACES_URL:-}" ]; then # spans of the requests that carry a traceparent
  case $TRISTAGE_TRACES_URL in *://*/?*) traces=$TRISTAGE_TRACES_URL ;; *) traces=${TRISTAGE_TRACES_URL%/}/v1/traces ;; esac
  set -- --trace-config=mode=opentelemetry "--trace-config=opentelemetry,url=$traces" --trace-config=level=TIMESTAMPS \
    --trace-config=rate=0 --trace-config=count=-1 "$@"
fi
if grep -qs '^response_cache' "$models"/*/config.pbtxt; then set -- --cache-config=local,size=67108864 "$@"; fi
if grep -qs '^ *rate_limiter' "$models"/*/config.pbtxt; then set -- --rate-limit=execution_count "$@"; fi
exec tritonserver \
  --model-repository="$models" \
  --model-control-mode=none \
  --strict-readiness=true \
  --exit-on-error=true \
  --disable-auto-complete-config \
  --exit-timeout-secs=30 \
  --http-address="$host" --http-port="${TRISTAGE_HTTP_PORT:-8000}" \
  --grpc-address="$host" --grpc-port="${TRISTAGE_GRPC_PORT:-8001}" \
  --metrics-address="$host" --metrics-port="${TRISTAGE_METRICS_PORT:-8002}" \
  --metrics-config=summary_latencies=$percentiles \
  --http-restricted-api="$restricted" \
  --grpc-restricted-protocol="$restricted" \
  "$@"
