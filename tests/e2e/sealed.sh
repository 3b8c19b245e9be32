# Images that are encrypted, and images that were changed: what is refused, and by whom. The guest has two CPUs.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
value key 72
value marker 72
holding src --cpus 2 --secret "KEY=file:$values/key"
exits "a mark in the guest's memory" 0 sh -c "cachot exec -i src -- sh -c 'cat >/tmp/marker' <'$values/marker'"
holds src key

exits "an image" 0 cachot snapshot create src "$images/plain"
forgets plain key
equal "it is of two CPUs" '"cpus": 2,' "$(grep -o '"cpus": 2,' "$images/plain/manifest.json")"
matches "registers were redacted" '"place": "vcpu"' "$(cat "$images/plain/manifest.json")"
exits "an encrypted one" 0 cachot snapshot create src "$images/sealed" --recipient "$(cat "$IN/recipient")"
forgets sealed key
matches "control: the mark is in the plain one" 'plain/memory' "$("$gnu_grep" -rlaF -f "$values/marker" "$images/plain")"
equal "the mark is not in the encrypted one" "" "$("$gnu_grep" -rlaF -f "$values/marker" "$images/sealed")"
holds src key
cp "$IN/identity" "$work/identity"
chmod 600 "$work/identity"
refuses "no identity" '(identity|encrypted)' cachot restore -d --name never "$images/sealed"
refuses "no identity for a verification" '(identity|encrypted)' cachot snapshot verify "$images/sealed"
cp "$IN/stranger" "$work/stranger"
chmod 600 "$work/stranger"
refuses "an identity that does not fit" 'memory.*(identity|key)|(identity|key).*memory' \
    cachot restore -d --name never --identity "$work/stranger" "$images/sealed"
refuses "an identity that does not fit, for a verification" 'identity|keys' cachot snapshot verify --identity "$work/stranger" "$images/sealed"
exits "a verification with the identity" 0 cachot snapshot verify --identity "$work/identity" "$images/sealed"
matches "it was searched again" 'again: 1 of 1 value' "$out"
exits "a restore with the identity" 0 cachot restore -d --name back --identity "$work/identity" "$images/sealed"
holds back key
exits "its memory and CPUs are there" 0 cachot exec back -- sh -c 'cat /tmp/marker; echo; nproc'
equal "its memory and CPUs are there" "$(cat "$values/marker") 2" "$(echo $out)"
exits "they end" 0 cachot rm -f src back
nothing_left

# The plain image, changed. Each change is undone after it was refused.
image=$images/plain
# refused NAME PATTERN: the image is, by a verification, which ends with $verdict, and by a restore, before anything runs
verdict=1
refused() {
    exits "$1: not verified" $verdict cachot snapshot verify "$image"
    matches "$1: says why" "$2" "$err"
    refuses "$1: not restored" "$2" cachot restore -d --name never "$image"
}
# flip FILE OFFSET: changes one bit
flip() {
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    printf %b "\\0$(printf %o $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
exits "control: it is verified" 0 cachot snapshot verify "$image"
for part in memory state plan needles digests manifest.sig manifest.json; do
    size=$(stat -c %s "$image/$part")
    named=$part
    case $part in manifest.*) named='signature|manifest' ;; esac
    flip "$image/$part" $((size / 2))
    refused "one bit of $part" "$named"
    flip "$image/$part" $((size / 2))
done
cp -p "$image/state" "$work/saved"
size=$(($(stat -c %s "$image/state") - 1))
truncate -s "$size" "$image/state"
refused "a byte less of state" "state.*$size"
cp -p "$work/saved" "$image/state"
rm "$image/state"
verdict=125
ln -s "$work/saved" "$image/state"
refused "a link to state" '"?state.*link|link.*state'
rm "$image/state"
refused "no state" 'state'
cp -p "$work/saved" "$image/state"
chmod 602 "$image/state"
refused "a state that others can write" 'state.*(write|others)'
chmod 600 "$image/state"
exits "control: it is verified again" 0 cachot snapshot verify "$image"

verdict=1
own=$CACHOT_STATE
export CACHOT_STATE="$work/elsewhere"
key=$(sed -n 's/^ *"host_key": "\([0-9a-f]*\)".*/\1/p' "$image/manifest.json")
refused "a key that is not trusted" "$key"
mkdir -p "$CACHOT_STATE/trusted-keys"
chmod -R 700 "$CACHOT_STATE"
echo "$key" >"$CACHOT_STATE/trusted-keys/other-host"
exits "control: it is verified where the key is trusted" 0 cachot snapshot verify "$image"
exits "and restored" 0 cachot restore -d --name there "$image"
holds there key
exits "it ends" 0 cachot rm -f there
nothing_left
export CACHOT_STATE="$own"
finish
