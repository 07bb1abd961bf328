#!/usr/bin/env bash
# Make .venv with the packages pinned in requirements.txt and this project in it; see `make setup`.
# A second run is over at once, until requirements.txt or pyproject.toml changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PATH:/usr/sbin:/sbin" # ldconfig, for users other than root

say() { printf 'setup: %s\n' "$*" >&2; }

# install_debian WHY PACKAGE...: as root on Debian or Ubuntu install the packages, else say what to type.
install_debian() {
    local why=$1
    shift
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "$why: installing the Debian packages $*"
        apt-get update -qq >/dev/null || true # an unreachable third-party source must not end the set-up
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" </dev/null >/dev/null && return
    fi
    say "$why. On Debian and Ubuntu: sudo apt-get install --no-install-recommends $*"
    return 1
}

# MuJoCo draws through EGL: the dispatch libraries, and a driver behind them (a graphics card's own, or Mesa's software one).
check_gl() {
    [[ $(uname -s) == Linux ]] || return 0
    local libraries missing=()
    libraries=$(ldconfig -p 2>/dev/null || true)
    [[ $libraries == *libEGL.so.1* ]] || missing+=(libegl1)
    [[ $libraries == *libOpenGL.so.0* || $libraries == *libGL.so.1* ]] || missing+=(libopengl0)
    if [[ $libraries != *libEGL_nvidia.so.0* ]]; then
        [[ $libraries == *libEGL_mesa.so.0* ]] || missing+=(libegl-mesa0)
        compgen -G '/usr/lib*/dri/*swrast_dri.so' >/dev/null || compgen -G '/usr/lib/*/dri/*swrast_dri.so' >/dev/null ||
            compgen -G '/usr/lib*/libgallium*.so' >/dev/null || compgen -G '/usr/lib/*/libgallium*.so' >/dev/null || missing+=(libgl1-mesa-dri)
    fi
    ((${#missing[@]} == 0)) || install_debian "libraries that MuJoCo renders with are missing" "${missing[@]}" ||
        say "going on without them: whatever draws the robot's world will stop with this same advice"
}

# Print the command of a Python 3.12.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3 python /usr/local/bin/python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python3; do
        if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    say "Python 3.12 is needed and none was found (tried PYTHON, python3.12, python3, python and pyenv's)."
    say "Install it (Ubuntu 24.04: sudo apt-get install python3.12-venv; elsewhere: pyenv install 3.12), or name it: make setup PYTHON=/path/to/python3.12"
    return 1
}

make_environment() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_debian "$python has no venv module" python3.12-venv
    say "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
}

check_gl
pins="$(cat requirements.txt pyproject.toml | sha256sum | cut -d' ' -f1) $PWD" # a copied .venv still points at its old folder
stamp=.venv/pins
if [[ -f $stamp && -x .venv/bin/python && $(<"$stamp") == "$pins" ]]; then
    exit 0
fi

if [[ -f $stamp && $(<"$stamp") != *" $PWD" ]] || ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    make_environment
fi
rm -f "$stamp"
.venv/bin/python -m pip install -qq --disable-pip-version-check "$(grep '^uv==' requirements.txt)"
say "installing the packages of requirements.txt"
# By path: a version manager's shim may stand before .venv/bin in PATH.
install=(.venv/bin/uv pip install --quiet --python .venv/bin/python)
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} # single packages are several hundred megabytes
"${install[@]}" --requirements requirements.txt
"${install[@]}" --no-deps --no-build-isolation --editable .
printf '%s\n' "$pins" >"$stamp"
say "ready: .venv/bin/vla-tune --help"
