# Values of the store in guests: whose they are, that a new one arrives, and that disks which fail lose nothing.
. "$IN/lib.sh"
probe=$CACHOT_GUEST/probe
images=$work/images
mkdir "$images"

# store NAME VALUE OPTION...
store() {
    printf %s "$2" >"$work/value-$2"
    name=$1 value=$2
    shift 2
    cachot secret set "$name" --from "file:$work/value-$value" "$@" >/dev/null || fail "cannot store $name $*"
}
# shown: the value of KEY in a VM that is run with these options
shown() { cachot run --no-mask --secret KEY=store:KEY "$@" -- cat /run/secrets/KEY 2>&1; }

refuses "no store yet" 'KEY: there is no store' cachot run --secret KEY=store:KEY -- true
store KEY everybodys-0123456789
store KEY alices-0123456789 --scope user:alice --secrets-user alice
store KEY alices-web-0123456789 --scope instance:web --secrets-user alice
equal "everybody's" everybodys-0123456789 "$(shown)"
equal "a user's own" alices-0123456789 "$(shown --secrets-user alice)"
equal "a VM's own" alices-web-0123456789 "$(shown --secrets-user alice --name web)"
equal "not another user's VM of that name" everybodys-0123456789 "$(shown --secrets-user bob --name web)"
refuses "another user's" 'KEY: the scope user:alice is not open' \
    cachot run --secrets-user bob --secret KEY=store:user:alice/KEY -- true

# A VM that is started again, restored or forked has the value that counts by then.
exits "a VM" 0 cachot run -d --name src --secret KEY=store:KEY -- sh -c 'while :; do sha256sum /run/secrets/KEY; sleep 1; done'
exits "its image" 0 cachot snapshot create src "$images/image"
exits "it ends" 0 cachot rm -f src
store KEY rotated-9876543210
equal "the new value" rotated-9876543210 "$(shown)"
equal "an old version, where it is wanted" everybodys-0123456789 \
    "$(cachot run --no-mask --secret KEY=store:KEY@1 -- cat /run/secrets/KEY)"
store KEY childs-0123456789 --scope instance:one
exits "two children" 0 cachot fork "$images/image" --count 2 --names one,two
for child in one two; do
    # What was printed before the copy was made may come first.
    sleep 5
    digest=$(cachot logs "$child" | tail -n 1)
    [ "$child" = one ] && wanted=childs-0123456789 || wanted=rotated-9876543210
    matches "child $child has its own" "^$(sha256sum <"$work/value-$wanted" | cut -d ' ' -f 1) " "$digest"
done
exits "the image is verified with the values that its VM would have" 0 cachot snapshot verify "$images/image"

# No file of the state or of the image has a value; the search finds one that is put there.
set --
for value in "$work"/value-*; do set -- "$@" --needle "$value"; done
exits "no file has a value" 0 "$probe" scan "$work/state" "$@"
exits "nor has the image" 0 "$probe" scan "$images" "$@"
cp "$work/value-rotated-9876543210" "$CACHOT_STATE/secrets/control"
exits "control: one is found" 1 "$probe" scan "$work/state" "$@"
rm "$CACHOT_STATE/secrets/control"
exits "the children end" 0 cachot rm -f one two

# A full disk, and one that is read-only.
disk=$work/disk
mkdir "$disk"
mount -t tmpfs -o size=256k,mode=700 none "$disk"
state=$CACHOT_STATE
export CACHOT_STATE="$disk/state"
store KEY before-0123456789
dd if=/dev/zero of="$disk/filler" bs=4096 2>/dev/null || ok "the disk is full"
head -c 30000 /dev/zero | tr '\0' x >"$work/large"
refuses "no room" 'no room|No space' cachot secret set KEY --from "file:$work/large"
rm "$disk/filler"
exits "what was stored is there" 0 cachot secret export KEY --yes
equal "unchanged" before-0123456789 "$out"
store KEY after-0123456789
mount -o remount,ro "$disk"
refuses "read-only" 'cannot be written|Read-only' cachot secret set KEY --from "file:$work/large"
mount -o remount,rw "$disk"
exits "what was stored is there, too" 0 cachot secret export KEY --yes
equal "as it was" after-0123456789 "$out"
umount "$disk"
export CACHOT_STATE="$state"
finish
