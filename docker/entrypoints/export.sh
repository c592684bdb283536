#!/bin/sh
# Fills the mounted model repository with the small reference stack; leaves one that holds a stack as it is.
# Started as root, it becomes the owner of the folder, so that who cloned the project owns what is written.
set -eu
models=${TRISTAGE_REPOSITORY:-/models}
target=${TRISTAGE_TARGET:-pip-cpu}

owner=$(stat -c %u "$models")
if [ "$(id -u)" = 0 ] && [ "$owner" != 0 ]; then
  exec setpriv --reuid "$owner" --regid "$(stat -c %g "$models")" --clear-groups "$0" "$@"
fi

if [ -f "$models/manifest.json" ]; then
  held=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["target"])' "$models/manifest.json")
  if [ "$held" != "$target" ]; then
    echo "$models holds a stack for $held, and this server wants $target; export it for that, or move it away" >&2
    exit 2
  fi
  echo "$models holds a stack; it stays as it is"
  exit 0
fi
staging=$models/.incoming
rm -rf "$staging" # of a run that was interrupted
found=$(find "$models" -mindepth 1 -maxdepth 1 ! -name README.md ! -name .gitignore ! -name .gitkeep | head -n 1)
if [ -n "$found" ]; then
  echo "$found is no part of an exported stack; empty the model repository, or export a stack into it" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work" "$staging"' EXIT
echo "training the small reference stack on synthetic rows (minutes)"
python -m examples.recsys2021.train --size small -o "$work/artifacts"
PYTHONPATH=. tristage export "$work/artifacts/stack.yaml" -o "$work/models" --trust --target "$target"

# the mounted folder itself cannot be renamed, so its entries are, the manifest last: without it nothing is served
mkdir "$staging"
cp -a "$work/models/." "$staging/"
for entry in "$staging"/*; do
  [ "$entry" = "$staging/manifest.json" ] || mv "$entry" "$models/"
done
mv "$staging/manifest.json" "$models/"
