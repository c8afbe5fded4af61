#!/usr/bin/env bash
# Everything that `mtctl data` does, as a user does it: build, look, check, take apart, put together, back to text; what Megatron
# wrote; conversations; and bad input, each kind with a message that names the thing, the value and the remedy, and nothing left.
#   tests/scenario/in_sandbox.sh tests/scenario/data.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/jobs.sh"
golden=$here/../golden

same() {  # two datasets have the same bytes
  local suffix
  for suffix in bin idx; do cmp "$1.$suffix" "$2.$suffix" || fail "$1.$suffix is not $2.$suffix"; done
  [ -e "$1.loss" ] || [ -e "$2.loss" ] || return 0
  cmp "$1.loss" "$2.loss" || fail "$1.loss is not $2.loss"
}
says() {  # says 'PATTERN'... -- COMMAND...: as refused, of a command that succeeds
  refused 0 "$@"
}

echo "== texts into datasets, and back"
for licence in GPL-2 GPL-3 LGPL-2.1 Apache-2.0 MPL-2.0; do
  python3 -c 'import json, sys; print(json.dumps({"text": sys.stdin.read()}))' < /usr/share/common-licenses/$licence > $licence.jsonl
done
cat GPL-2.jsonl GPL-3.jsonl LGPL-2.1.jsonl Apache-2.0.jsonl MPL-2.0.jsonl > all.jsonl
for name in all GPL-2 GPL-3 LGPL-2.1 Apache-2.0 MPL-2.0; do
  mtctl -q data build $name.jsonl --tokenizer byte --output $name > /dev/null
done
mtctl data verify all
says 'documents +5' 'largest id +256' 'end with id 256 +5 of 5' '8192–16383 +1' 'GNU GENERAL PUBLIC LICENSE' -- mtctl data inspect all
[ "$(mtctl data inspect all -o json | field documents)" = 5 ] || fail "inspect -o json"
mtctl -q data decode all --output again.jsonl
mtctl -q data build again.jsonl --tokenizer byte --output again > /dev/null
same again all
[ "$(mtctl data decode all --documents 3 --as text | head -n 2 | grep -c 'Apache License')" = 1 ] || fail "decode one document"
mtctl data decode all --documents :2 --as text --separator ---- > two.txt
[ "$(grep -c '^----$' two.txt)" = 1 ] || fail "separator"
[ "$(mtctl data decode all --documents 4: --as ids | wc -w)" = "$(($(wc -c < /usr/share/common-licenses/MPL-2.0) + 1))" ] || fail "ids"

echo "== merge and split"
mtctl data merge GPL-2.idx GPL-3 LGPL-2.1 Apache-2.0 MPL-2.0.bin --output merged
same merged all
mtctl data verify merged | grep 'digests equal' || fail "the manifest was not kept"
mtctl data split all --documents 1 --output one
mtctl data merge one* --output glob > /dev/null
same glob all
refused 5 'one-0.idx is named twice' -- mtctl data merge one-0.idx one-1 one-0.idx --output no
for i in 0 1 2 3 4; do set -- GPL-2 GPL-3 LGPL-2.1 Apache-2.0 MPL-2.0; shift "$i"; same one-$i "$1"; done
mtctl data split all --shares 60,20,20
says 'all-train: 3 documents' 'all-test: 1 documents' -- mtctl data split all --shares 60,20,20 --overwrite
mtctl data merge all-train all-validation all-test --output whole > /dev/null
same whole all
[ "$(mtctl data split all --size 60KB --output small -o json | grep -c prefix)" = 4 ] || fail "split --size"

echo "== what Megatron wrote"
for name in first second sentences merged small wide; do mtctl data verify "$golden/megatron_dataset/$name"; done
says 'documents +3' 'uint16' 'jumps over' -- mtctl data inspect "$golden/megatron_dataset/small" --tokenizer byte
says '^\{"text":"jumps over"\}$' -- mtctl data decode "$golden/megatron_dataset/small" --tokenizer byte --documents 1
says '3 of 3 datasets have no manifest' -- mtctl data merge "$golden"/megatron_dataset/{first,sentences,second} --output megatron
same megatron "$golden/megatron_dataset/merged"

echo "== bad input: nothing is made, the reason is told"
before=$(ls)
refused 3 'absent.idx' 'mtctl data build' -- mtctl data inspect absent
refused 3 'absent.idx' -- mtctl data merge all absent --output no
refused 5 'all.idx exists' '--overwrite' -- mtctl data merge GPL-2 GPL-3 --output all
refused 5 'all is an input too' -- mtctl data merge GPL-2 all --output ./all --overwrite
refused 5 'int32 tokens' 'uint16' 'one tokenizer' -- mtctl data merge all "$golden/megatron_dataset/first" --output no
refused 5 'one way' '--shares' '--size' -- mtctl data split all --output no
refused 5 'leave none for the share of 1 ' -- mtctl data split all --shares 1000,1 --output no
refused 5 '"two" +is|"two", which is not a share' -- mtctl data split all --shares two --output no
refused 2 'documents' -- mtctl data split all --documents 0 --output no
refused 5 'documents 3:9 do not exist; it has 5' -- mtctl data decode all --documents 3:9
refused 5 'is not FIRST:LAST' -- mtctl data decode all --documents three
refused 5 'no manifest' '--tokenizer' '--as ids' -- mtctl data decode "$golden/megatron_dataset/first"
refused 5 'first: document 0' 'vocabulary of 257' -- mtctl data decode "$golden/megatron_dataset/first" --tokenizer byte
refused 2 'jsonl' -- mtctl data decode all --as xml
refused 5 'two.txt exists' -- mtctl data decode all --output two.txt
refused '*' 'token id 256' 'vocabulary is 256' -- mtctl data verify all --vocab 256
[ "$(ls)" = "$before
said" ] || [ "$(ls)" = "$before" ] || fail "left behind: $(ls)"

echo "== damage is found wherever it is"
for suffix in bin idx loss; do for name in hurt; do rm -f $name.*; done; done
cp all.bin hurt.bin; cp all.idx hurt.idx; cp all.manifest.json hurt.manifest.json
printf 'X' | dd of=hurt.bin bs=1 seek=1000 conv=notrunc status=none
refused '*' 'hurt.bin|hurt: .bin has digest' 'rebuild' -- mtctl data verify hurt
refused '*' 'hurt.bin: digest' 'rebuild' -- mtctl data merge hurt GPL-2 --output no
refused '*' 'hurt.bin: digest' 'rebuild' -- mtctl data split hurt --documents 2 --output no
truncate -s -2 hurt.bin
refused '*' 'hurt.bin' 'copy both files again' -- mtctl data inspect hurt
[ ! -e no.idx ] && [ ! -e no-0.idx ] && [ ! -e no.bin.partial ] || fail "made from damaged data"
cp all.bin hurt.bin
printf 'half' > hurt.loss
refused '*' 'hurt.loss: 4 bytes' -- mtctl data verify hurt

echo "== no room"
mkdir tiny
mount -t tmpfs -o size=64k tmpfs tiny
refused '*' 'tiny: [0-9]+ bytes are to be written and [0-9]+ are free' -- mtctl data merge all all-train --output tiny/no
[ -z "$(ls tiny)" ] || fail "left in the full disk: $(ls tiny)"
umount tiny

if mtctl data build --help | grep -q -e --chat; then
  echo "== conversations"
  cat > chat.jsonl <<'END'
{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "Bye."}]}
{"messages": [{"role": "user", "content": "nobody answers"}]}
{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}
END
  mtctl data build chat.jsonl --chat plain --tokenizer byte --output plain
  says 'documents +2' 'tokens with a loss' 'Assistant: ⟦4⟧' '⟦Hi.⟧User: bye' -- mtctl data inspect plain
  grep -q 'chat.jsonl' plain.bad.jsonl && grep -q 'nothing in the conversation has a loss' plain.bad.jsonl && grep -q 'tool' plain.bad.jsonl || fail "bad lines of a chat"
  mtctl data build chat.jsonl --chat chatml --tokenizer "$golden/chat/tokenizer.json" --output chatml
  says '<\|im_start\|>assistant\\n4<\|im_end\|>' -- mtctl data decode chatml --special --documents 0
  mtctl data verify chatml
  mtctl data build chat.jsonl --chat mistral --tokenizer "$golden/chat/prepend.json" --output mistral
  says '2\+2\?\[/INST\] +⟦4</s>⟧' '⟦Hi\.</s>⟧\[INST\]' -- mtctl data inspect mistral
  mtctl data split chatml --documents 1 --output chatml > /dev/null
  mtctl data merge chatml-0 chatml-1 --output chatml-again > /dev/null
  same chatml-again chatml
  refused 5 'needs <\|im_start\|>' 'tokenizer byte' 'plain' -- mtctl data build chat.jsonl --chat chatml --tokenizer byte --output no
  refused '[25]' 'alpaca' 'chatml, deepseek' -- mtctl data build chat.jsonl --chat alpaca --tokenizer byte --output no
  refused 5 'chat.jsonl:3: ' -- mtctl data build chat.jsonl --chat plain --tokenizer byte --strict --output no
fi
echo "OK"
