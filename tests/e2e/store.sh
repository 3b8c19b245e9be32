# Values of the store in guests: whose they are, that a new one arrives, and that disks which fail lose nothing.
. "$IN/lib.sh"
probe=$CACHOT_GUEST/probe
images=$work/images
mkdir "$images"

# store VALUE OPTION...: makes a value of this name, and stores it as KEY
store() {
    head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/value-$1"
    value=$1
    shift
    cachot secret set KEY --from "file:$work/value-$value" "$@" >/dev/null || fail "cannot store $value"
}
# shown: the value of KEY in a VM that is run with these options, by its name here
shown() {
    cachot run --no-mask --secret "KEY=${REFERENCE-store:KEY}" "$@" -- cat /run/secrets/KEY >"$work/shown" 2>&1
    named=$(cat "$work/shown")
    for value in "$work"/value-*; do
        if cmp -s "$value" "$work/shown"; then named=${value##*/value-}; fi
    done
    echo "$named"
}

refuses "no store yet" 'KEY: there is no store' cachot run --secret KEY=store:KEY -- true
store everybodys
store alices --scope user:alice --secrets-user alice
store alices-web --scope instance:web --secrets-user alice
equal "everybody's" everybodys "$(shown)"
equal "a user's own" alices "$(shown --secrets-user alice)"
equal "a VM's own" alices-web "$(shown --secrets-user alice --name web)"
equal "not another user's VM of that name" everybodys "$(shown --secrets-user bob --name web)"
refuses "another user's" 'KEY: the scope user:alice is not open' \
    cachot run --secrets-user bob --secret KEY=store:user:alice/KEY -- true
matches "another user's: recorded" ' KEY materialize deny user=bob source=store: not open to this user$' "$(cachot secret audit | tail -n 1)"

# A VM that is started again, restored or forked has the value that counts by then.
exits "a VM" 0 cachot run -d --name src --secret KEY=store:KEY -- sh -c 'while :; do sha256sum /run/secrets/KEY; sleep 1; done'
exits "its image" 0 cachot snapshot create src "$images/image"
exits "it ends" 0 cachot rm -f src
store rotated
equal "the new value" rotated "$(shown)"
equal "an old version, where it is wanted" everybodys "$(REFERENCE=store:KEY@1 shown)"
store childs --scope instance:one
exits "two children" 0 cachot fork "$images/image" --count 2 --names one,two
for child in one two; do
    # What was printed before the copy was made may come first.
    sleep 5
    digest=$(cachot logs "$child" | tail -n 1)
    wanted=rotated
    if [ "$child" = one ]; then wanted=childs; fi
    expected="scope=workspace version=2"
    if [ "$child" = one ]; then expected="scope=instance:one version=1"; fi
    matches "child $child: recorded" " KEY rehydrate allow vm=$child user=0 source=store $expected from=" "$(cachot secret audit)"
    matches "child $child has its own" "^$(sha256sum <"$work/value-$wanted" | cut -d ' ' -f 1) " "$digest"
done
exits "the image is verified with the values that its VM would have" 0 cachot snapshot verify "$images/image"

# No file of the state or of the image has a value; the search finds one that is put there.
set --
for value in "$work"/value-*; do set -- "$@" --needle "$value"; done
exits "no file has a value" 0 "$probe" scan "$work/state" "$@"
exits "nor has the image" 0 "$probe" scan "$images" "$@"
cp "$work/value-rotated" "$CACHOT_STATE/secrets/control"
exits "control: one is found" 1 "$probe" scan "$work/state" "$@"
rm "$CACHOT_STATE/secrets/control"
exits "the children end" 0 cachot rm -f one two

# A full disk, and one that is read-only.
disk=$work/disk
mkdir "$disk"
mount -t tmpfs -o size=256k,mode=700 none "$disk"
state=$CACHOT_STATE
export CACHOT_STATE="$disk/state"
store before
dd if=/dev/zero of="$disk/filler" bs=4096 2>/dev/null || ok "the disk is full"
head -c 30000 /dev/zero | tr '\0' x >"$work/large"
refuses "no room" 'no room|No space' cachot secret set KEY --from "file:$work/large"
rm "$disk/filler"
exits "what was stored is there" 0 cachot secret export KEY --yes
equal "unchanged" "$(cat "$work/value-before")" "$out"
store after
mount -o remount,ro "$disk"
refuses "read-only" 'cannot be written|Read-only' cachot secret set KEY --from "file:$work/large"
mount -o remount,rw "$disk"
exits "what was stored is there, too" 0 cachot secret export KEY --yes
equal "as it was" "$(cat "$work/value-after")" "$out"
umount "$disk"
export CACHOT_STATE="$state"
finish
