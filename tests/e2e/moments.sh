# Images that are changed while they are restored, trusted ones, and a state folder without room.
. "$IN/lib.sh"
. "$IN/hold.sh"
value key 72
awk 'BEGIN { for (i = 0; i < 40000; i++) printf "line-%08d-of-this-guest\n", i }' >"$work/lines"
exits "a VM" 0 cachot run -d --name src --memory 128M --secret "KEY=file:$values/key" -- sleep 100000
exits "a mark in its memory" 0 sh -c "cachot exec -i src -- sh -c 'cat >/tmp/lines' <'$work/lines'"
exits "an image" 0 cachot snapshot create src "$images/image"
offsets=$(LC_ALL=C "$gnu_grep" -obaF line-00020000-of-this-guest "$images/image/memory" | cut -d : -f 1)
matches "control: the mark is in it" '^[0-9]+$' "$offsets"

# has_secret VM NAME
has_secret() { equal "$2" "$(sha256sum <"$values/key")" "$(cachot exec "$1" -- sh -c 'sha256sum </run/secrets/KEY' 2>&1)"; }
marked() { cachot exec "$1" -- sh -c 'sha256sum </tmp/lines'; }
sum=$(marked src)
copy() {
    rm -rf "$images/changed"
    cp -a "$images/image" "$images/changed"
}
change() {
    for at in $offsets; do
        printf X | dd of="$images/changed/memory" bs=1 seek="$at" conv=notrunc 2>/dev/null
    done
}

# With --trust-image.
copy
exits "a restore that trusts the image" 0 cachot restore -d --name trusting --trust-image "$images/changed"
equal "it has the guest's memory" "$sum" "$(marked trusting)"
has_secret trusting "it has its secret"
exits "it ends" 0 cachot rm -f trusting
change
exits "control: what is changed is in the VM that trusts it" 0 cachot restore -d --name trusting --trust-image "$images/changed"
seen=$(marked trusting)
if [ -n "$seen" ] && [ "$seen" != "$sum" ]; then ok "control: another mark"; else fail "control: the mark is '$seen'"; fi
exits "control: it ends" 0 cachot rm -f trusting
refuses "who does not trust it" 'memory' cachot restore -d --name never "$images/changed"
copy
printf X | dd of="$images/changed/state" bs=1 seek=100 conv=notrunc 2>/dev/null
refuses "a state is never trusted" 'state' cachot restore -d --name never --trust-image "$images/changed"

# Changed while it is checked and read: the VM has what was checked, or there is none.
for delay in 0 0.1 0.2 0.3 0.5 0.8 1.2 2; do
    copy
    cachot restore -d --name copy "$images/changed" >"$work/copy" 2>&1 &
    command=$!
    sleep $delay
    change
    code=0
    wait $command || code=$?
    if [ $code = 0 ]; then
        equal "changed after $delay s: the VM has what was checked" "$sum" "$(marked copy)"
        cachot rm -f copy >/dev/null 2>&1
    else
        equal "changed after $delay s: refused" 125 $code
        matches "changed after $delay s: says why" 'memory.*(damaged|changed|not what)' "$(cat "$work/copy")"
    fi
done
exits "restored before it is changed" 0 cachot restore -d --name copy "$images/image"
rm -rf "$images/changed"
mv "$images/image" "$images/changed"
change
equal "the VM has what was checked" "$sum" "$(marked copy)"
exits "they end" 0 cachot rm -f src copy
rm -rf "$images/changed"

# A state folder on a disk that gets full.
mkdir "$work/full"
mount -t tmpfs -o size=8m tmpfs "$work/full"
own=$CACHOT_STATE
export CACHOT_STATE="$work/full/state"
exits "a VM in a small state folder" 0 cachot run -d --name src --memory 128M --secret "KEY=file:$values/key" -- sleep 100000
lives() { has_secret src "$1: the VM runs on"; }
head -c 16777216 /dev/zero >"$work/full/filler" 2>/dev/null
refuses "an image on the full disk" 'No space' cachot snapshot create src "$work/full/image"
equal "an image on the full disk: nothing is left" "filler state" "$(find "$work/full" -mindepth 1 -maxdepth 1 -exec basename {} \; | sort | tr "\n" " " | sed "s/ $//")"
lives "an image on the full disk"
exits "an image elsewhere needs no room there" 0 cachot snapshot create src "$images/elsewhere"
refuses "no secret is given out for a verification" 'recorded' cachot snapshot verify "$images/elsewhere"
lives "an image elsewhere"
mv "$CACHOT_STATE/host-key" "$work/host-key"
head -c 65536 /dev/zero >>"$work/full/filler" 2>/dev/null
refuses "a key for which there is no room" 'No space' cachot snapshot create src "$images/keyless"
if [ -e "$CACHOT_STATE/host-key" ]; then fail "a key for which there is no room: there is one"; else ok "a key for which there is no room: there is none"; fi
lives "a key for which there is no room"
refuses "a restore for which there is no room" 'No space|[Cc]annot|trusted' cachot restore -d --name never "$images/elsewhere"
rm "$work/full/filler"
mv "$work/host-key" "$CACHOT_STATE/host-key"
exits "with room again, the image elsewhere is verified" 0 cachot snapshot verify "$images/elsewhere"
exits "with room again" 0 cachot snapshot create src "$images/room"
lives "with room again"
exits "it ends" 0 cachot rm -f src
nothing_left
umount "$work/full"
export CACHOT_STATE="$own"
finish
