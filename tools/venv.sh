# Sourced: make or reuse .venv and install edgekit with the extra "$1" and the pinned versions into it.
python=""
for candidate in python3.13 python3.12 python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
if [ -z "$python" ]; then
  echo "edgekit needs Python 3.11 or newer on the PATH" >&2
  exit 2
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
. .venv/bin/activate
stamp=".venv/edgekit-$1.stamp"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  # torch first and alone, so that a CPU build is taken where one is offered
  python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
  python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]"
  touch "$stamp"
fi
