# Snapshots that forget: a workload has its secret everywhere; an image has none of it, the workload keeps it, and a
# restored one has it back.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
value key 72
value unrelated 72
holding src --secret "KEY=file:$values/key"
holds src key

# The image that forgets nothing is the control of all searches.
# The thread with its registers full has to be on the CPU then: it is when nothing else runs.
head -c 16 "$values/key" >"$work/beginning"
for _ in 1 2 3 4 5; do
    rm -rf "$images/keep"
    exits "an image with residue" 0 cachot snapshot create src "$images/keep" --dangerously-keep-residue
    "$gnu_grep" -qaF -f "$work/beginning" "$images/keep/state" && break
done
exits "control: there is residue in it" 1 "$probe" scan "$images/keep" --needle "$values/key"
# hits AT_LEAST PART ENCODING LENGTH PLACES
hits() {
    count=$(printf '%s\n' "$out" | grep -Ec "^hit $images/keep/$2 [0-9]+ $3 $4$" || true)
    if [ "$count" -ge "$1" ]; then ok "control: $5"; else fail "control: $5: $count hits, not $1: $out"; fi
}
hits 9 memory raw 72 "attached page, heap, stack, environment, pipe, socket, tmpfs, private copy, end of a page"
hits 1 memory raw '(5[3-9]|6[0-4])' "freed heap, but for what the allocator wrote into it"
hits 1 memory raw 65 "split after 7 bytes over two pages: the second page"
hits 1 memory raw 20 "split after 20: the first page"
hits 1 memory raw 52 "split after 20: the second page"
hits 1 memory base64-phase-0 96 "base64"
hits 1 memory base64url-phase-0 96 "base64 for URLs"
hits 1 memory base64-phase-0 76 "base64 in lines of 76 characters"
hits 1 memory hex 144 "hex"
hits 1 memory hex-upper 144 "HEX"
hits 1 memory percent '[0-9]+' "percent"
hits 1 memory json 73 "JSON"
hits 1 memory utf-16le 144 "UTF-16"
# The image has the upper halves of YMM registers apart from the lower ones, so that a value in them is cut up.
hits 1 state raw 64 "general registers"
hits 2 state raw '(16|64|72)' "vector registers"
hits 2 memory reversed-words 32 "general registers on the stack of the kernel, from the thread's last interrupt"
exits "control: for cachot too" 1 cachot snapshot scan "$images/keep" --secret "KEY=file:$values/key" --json
count=$(printf '%s\n' "$out" | sed -n 's/^  "hits": \([0-9]*\),*/\1/p')
if [ "$count" -ge 23 ]; then ok "control: cachot finds each"; else fail "control: cachot finds $count: $out"; fi
equal "control: grep finds each form in one piece" "$(forms key | sort -u)" "$(greps key "$images/keep")"
equal "control: grep does not find anything" "" "$(greps unrelated "$images/keep")"
refuses "it is not restored just so" 'dangerously-keep-residue' cachot restore -d --name never "$images/keep"
exits "it is not verified" 1 cachot snapshot verify "$images/keep"

exits "an image" 0 cachot snapshot create src "$images/image"
forgets image key
for part in manifest.json state plan needles memory; do
    [ -s "$images/image/$part" ] || fail "$part was not searched: it is empty"
done
matches "the manifest names the secret" '"reference": "file:' "$(cat "$images/image/manifest.json")"
exits "it is verified" 0 cachot snapshot verify "$images/image"
matches "it is verified with the value" 'again: 1 of 1 value' "$out"
refuses "residue can be refused" 'residue|copies' cachot snapshot create src "$images/none" --on-residue refuse
holds src key

exits "a restore" 0 cachot restore -d --name back "$images/image"
until_matches "the workload hears of it" '^epoch [0-9]+$' cachot logs back
holds back key
holds src key
# A snapshot of a restored VM forgets what was put back.
exits "an image of the restored VM" 0 cachot snapshot create back "$images/second"
forgets second key
exits "the end" 0 cachot rm -f src back
finish
