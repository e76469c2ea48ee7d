#!/bin/sh
# Fetches the fonts that the corpus `glyphs` is drawn from, 249 npm packages of 650 MB unpacked, into target/fonts: npm checks each by the hash in
# package-lock.json. Fonts of Google Fonts as @expo-google-fonts carries them; each package has its font's licence, nearly all the SIL Open Font License.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p target/fonts
cp examples/experiments/fonts/package.json examples/experiments/fonts/package-lock.json target/fonts/
cd target/fonts
npm ci --ignore-scripts --no-audit --no-fund
