#!/usr/bin/env bash
# Prints the quickstart's text: the King James Bible (public domain), 4.1 MB of plain English, from the Debian package
# bible-kjv. One verse per line, without its number; a blank line between chapters, so that
# `mtctl data build --document-separator ''` makes each of the 1,189 chapters a document.
set -euo pipefail
command -v bible >/dev/null || { echo "quickstart-text.sh: bible-kjv is missing; deploy/install-deps.sh installs it" >&2; exit 1; }
bible -f gen1:1-rev22:21 </dev/null | awk '
  {
    chapter = $1
    sub(/:.*/, "", chapter)
    if (NR > 1 && chapter != previous) print ""
    previous = chapter
    sub(/^[^ ]+ /, "")
    print
  }'
