#!/bin/sh
# Unpacks the Python that stands behind this script's last line: unpack-python.sh FOLDER SHA256 LINE, the
# first line of it. FOLDER appears whole or not at all. Shell alone: whoever needs this has no other Python.
folder=$1 digest=$2 line=$3
partial=$folder.partial.$$
umask 077

refuse() {
  echo "$*" >&2
  exit 1
}

trap 'rm -rf "$partial"' EXIT
mkdir -p "$partial/unpacked" && tail -n +"$line" "$0" > "$partial/archive" || refuse "there is no room for it"
[ "$(sha256sum < "$partial/archive")" = "$digest  -" ] || refuse "its SHA-256 is not $digest"
said=$(tar -xf "$partial/archive" -C "$partial/unpacked" 2>&1) || refuse "tar cannot unpack it: $said"
for python in "$partial"/unpacked/bin/python3 "$partial"/unpacked/*/bin/python3; do
  [ ! -e "$python" ] || break
done
[ -e "$python" ] || refuse "it has no bin/python3, nor a folder with one"
said=$("$python" -c 'import ssl, venv' 2>&1) || refuse "its Python does not start here: $said"
# Another run may have been faster, and its Python be in use.
"$folder/bin/python3" -c '' 2> /dev/null && exit
rm -rf "$folder" && mv "${python%/bin/python3}" "$folder"
exit
