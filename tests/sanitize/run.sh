#!/usr/bin/env bash
# The engines under AddressSanitizer and UndefinedBehaviorSanitizer, and under valgrind where it is installed:
# first the C alone on cases with exact buffers and on forged files, then the fuzz of tests/unit/test_forest_engine.py;
# of the columns and the recurrence engine, the fuzz of tests/unit/test_columns_program.py and test_recurrence_engine.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$PWD/.venv/bin/python
source=serving/forest
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=c11 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -I"$source")
checks=(-fsanitize=address,undefined -fno-sanitize-recover=all)
mkdir "$work/cases"
PYTHONSAFEPATH=1 "$python" tests/sanitize/cases.py "$work/cases"

echo "sanitizers, C alone"
"${CC:-cc}" "${flags[@]}" "${checks[@]}" tests/sanitize/replay.c "$source"/open.c "$source"/predict.c -o "$work/sanitized" -lm
"$work/sanitized" "${FORGERIES:-3000}" "$work"/cases/*.case

if command -v valgrind >/dev/null; then
  echo "valgrind, C alone"
  "${CC:-cc}" "${flags[@]}" tests/sanitize/replay.c "$source"/open.c "$source"/predict.c -o "$work/plain" -lm
  valgrind --quiet --error-exitcode=9 --leak-check=full "$work/plain" 20 "$work"/cases/*.case
fi

echo "sanitizers, inside Python"
package=$("$python" -P -c 'import tristage; print(*tristage.__path__)')
cp -r "$package" "$work/tristage"
rm "$work"/tristage/serving/forest/_engine*.so
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
"${CC:-cc}" "${flags[@]}" "${checks[@]}" -fPIC -shared -I"$include" "$source"/*.c -o "$work/tristage/serving/forest/_engine.abi3.so" \
  -DPy_LIMITED_API=0x030B0000 -lm
# Python and the libraries beside the engine are not built with sanitizers, and leak when they end
sanitized() {
  LD_PRELOAD="$("${CC:-cc}" -print-file-name=libasan.so) $("${CC:-cc}" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$work" PYTHONSAFEPATH=1 PYTHONMALLOC=malloc "$python" "$@"
}
sanitized -c "import sys, tristage.serving.forest._engine as e; sys.exit(not e.__file__.startswith('$work'))"
sanitized -m pytest -q -p no:xdist -p no:cacheprovider tests/unit/test_forest_engine.py

echo "sanitizers, the columns engine inside Python"
rm "$work"/tristage/serving/columns/_columns*.so
"${CC:-cc}" "${flags[@]}" "${checks[@]}" -fPIC -shared -I"$include" -Iserving/columns serving/columns/*.c \
  -o "$work/tristage/serving/columns/_columns.abi3.so" -DPy_LIMITED_API=0x030B0000 -lm
sanitized -c "import sys, tristage.serving.columns._columns as e; sys.exit(not e.__file__.startswith('$work'))"
sanitized -m pytest -q -p no:xdist -p no:cacheprovider tests/unit/test_columns_engine.py tests/unit/test_columns_program.py

echo "sanitizers, the recurrence engine inside Python"
rm "$work"/tristage/serving/recurrence/_layer*.so
"${CC:-cc}" "${flags[@]}" "${checks[@]}" -O2 -fPIC -shared -I"$include" -Iserving/recurrence serving/recurrence/*.c \
  -o "$work/tristage/serving/recurrence/_layer.abi3.so" -DPy_LIMITED_API=0x030B0000 -lm
sanitized -c "import sys, tristage.serving.recurrence._layer as e; sys.exit(not e.__file__.startswith('$work'))"
sanitized -m pytest -q -p no:xdist -p no:cacheprovider tests/unit/test_recurrence_engine.py -k "not torch"
