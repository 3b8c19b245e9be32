# Snapshots at bad moments: whatever dies or is missing, there is a whole image or none, and a whole VM or none.
. "$IN/lib.sh"
export TOKEN=value-of-this-generation-number-0
images=$work/images
mkdir "$images"

cat >"$work/workload" <<'S'
held=$(cat /run/secrets/A)
echo ready
while :; do sleep 0.2; done
S

# start NAME: a VM whose workload holds a copy of its secret
start() {
    exits "$1 starts" 0 cachot run -d --memory 128M --name "$1" --secret A=env:TOKEN -- sh -c "$(cat "$work/workload")"
}

running() { [ "$(cachot exec "$1" -- echo alive 2>&1)" = alive ]; }
goes_on() { if running "$1"; then ok "$2"; else fail "$2"; fi; }

# keeper_of NAME: process number
keeper_of() { cachot ps --json | grep -A 20 "\"name\": \"$1\"" | sed -n 's/.*"keeper": \([0-9]*\).*/\1/p' | head -n 1; }

# whole_or_none NAME PATH: an image that verifies, or nothing
whole_or_none() {
    if [ -e "$2" ]; then
        exits "$1: the image is whole" 0 cachot snapshot verify "$2"
        rm -rf "$2"
    else
        ok "$1: there is no image"
    fi
}
# holds GENERATION FOLDER: the files in it with the value of that generation. grep looks at a line up to its first zero byte.
holds() {
    find "$2" -type f | while read -r file; do
        tr -d '\0' <"$file" | grep -aqF -e "value-of-this-generation-number-$1" && echo "$file"
    done
}
leftovers() { find "$images" -name '.cachot-image-*'; }
none_of() { [ -z "$(pidof "$@")" ]; }

# until_ok NAME COMMAND...: the command succeeds within 20 seconds
until_ok() {
    name=$1
    shift
    for _ in $(seq 100); do
        if "$@" >"$work/until" 2>&1; then
            ok "$name"
            return
        fi
        sleep 0.2
    done
    fail "$name: $(cat "$work/until")"
}

# The command dies.
start web
for delay in 0 0.2 0.5 1 2 4; do
    cachot snapshot create web "$images/one" --json >/dev/null 2>&1 &
    command=$!
    sleep $delay
    kill -9 $command 2>/dev/null
    wait $command 2>/dev/null
    equal "the command killed after $delay s: no value is on the disk" "" "$(holds 0 "$images")"
    whole_or_none "the command killed after $delay s" "$images/one"
    goes_on web "the command killed after $delay s: the VM runs on"
done
created() { cachot snapshot create web "$images/base"; }
until_ok "the next create" created
equal "the next create cleans up" "" "$(leftovers)"
exits "its image verifies" 0 cachot snapshot verify "$images/base"

# The command dies that was to end the VM: the VM runs on, or there is an image and the VM is gone.
# Stopped for a while before it is killed, it finds the VM at rest if it has asked for that.
settled() { ! cachot ps | grep -Eq '^web +(saving|paused)'; }
rested=0
for delay in 0 0.2 0.4 0.6 0.8 1 1.5 3; do
    cachot snapshot create web "$images/one" --stop >/dev/null 2>&1 &
    command=$!
    sleep $delay
    kill -STOP $command 2>/dev/null
    sleep 2
    ! cachot ps | grep -Eq '^web +saving' || rested=$((rested + 1))
    kill -9 $command 2>/dev/null
    wait $command 2>/dev/null
    until_ok "a create --stop killed after $delay s: the VM does not stay at rest" settled
    if cachot ps | grep -Eq '^web +running'; then
        goes_on web "a create --stop killed after $delay s: the VM runs on"
    else
        if [ -e "$images/one" ]; then ok "a create --stop killed after $delay s: its image is there"; else fail "a create --stop killed after $delay s: the VM is gone without an image"; fi
        cachot rm -f web >/dev/null 2>&1
        start web
    fi
    whole_or_none "a create --stop killed after $delay s" "$images/one"
done
if [ $rested -ge 1 ]; then ok "control: the VM rested at $rested of these moments"; else fail "control: the VM never rested"; fi
exits "a create --stop of a workload at rest" 0 cachot snapshot create web "$images/stopped" --stop --quiesce-workload
matches "the VM is ended" '^web +exited' "$(cachot ps -a)"
exits "it is removed" 0 cachot rm web
exits "and restored" 0 cachot restore -d --name web "$images/stopped"
goes_on web "it goes on where it was stopped"
rm -rf "$images/stopped"

# Places that are no good.
refuses "onto a path that exists" exist cachot snapshot create web "$images/base"
ln -s "$images/nowhere" "$images/link"
refuses "onto a symbolic link" exist cachot snapshot create web "$images/link"
rm "$images/link"
refuses "into a folder that is missing" missing cachot snapshot create web "$work/missing/image"
refuses "of no VM" 'no VM' cachot snapshot create nobody "$images/two"
mkdir "$work/small"
mount -t tmpfs -o size=1m tmpfs "$work/small"
exits "onto a disk that is too small" 125 cachot snapshot create web "$work/small/image"
matches "onto a disk that is too small: says so" '[Nn]o space' "$err"
equal "onto a disk that is too small: nothing is left" "" "$(ls -A "$work/small")"
goes_on web "onto a disk that is too small: the VM runs on"
exits "onto a disk that is too small, with --stop" 125 cachot snapshot create web "$work/small/image" --stop
umount "$work/small"
goes_on web "onto a disk that is too small, with --stop: the VM runs on"

# Two at once: each makes its image, or is told to wait.
for number in 1 2; do
    cachot snapshot create web "$images/both$number" >"$work/both$number" 2>&1 &
    eval "both$number=\$!"
done
made=0
for number in 1 2; do
    code=0
    eval "wait \$both$number" || code=$?
    if [ $code = 0 ]; then
        made=$((made + 1))
    else
        matches "two at once: the other is told why" 'another snapshot' "$(cat "$work/both$number")"
    fi
    whole_or_none "two at once: image $number" "$images/both$number"
done
if [ $made -ge 1 ]; then ok "two at once: $made made"; else fail "two at once: none was made"; fi

exits "pause" 0 cachot pause web
exits "of a paused VM" 0 cachot snapshot create web "$images/paused"
matches "of a paused VM: it stays paused" '^web +paused' "$(cachot ps)"
exits "resume" 0 cachot resume web
goes_on web "of a paused VM: it can be resumed"
rm -rf "$images/paused"
exits "web is ended" 0 cachot rm -f web

# Of a VM whose workload has not started: a copy starts it.
cachot run -d --memory 128M --name early --secret A=env:TOKEN -- sh -c "$(cat "$work/workload")" >/dev/null &
early=$!
of_early() { cachot snapshot create early "$images/early"; }
until_ok "of a VM in early boot" of_early
wait $early
exits "of a VM in early boot: it is ended" 0 cachot rm -f early
exits "of a VM in early boot: restore" 0 cachot restore -d --name later "$images/early"
is_ready() { cachot logs later | grep -q ready; }
until_ok "of a VM in early boot: the copy starts its workload" is_ready
exits "of a VM in early boot: the copy has its secret" 0 cachot exec later -- grep -q number-0 /run/secrets/A
exits "of a VM in early boot: the copy is ended" 0 cachot rm -f later
rm -rf "$images/early"

# Images that were changed, or that this host does not trust.
TOKEN='' refuses "a secret that has no value any more" 'A' cachot restore -d --name copy "$images/base"
refuses "a variable that is gone" TOKEN env -u TOKEN cachot restore -d --name copy "$images/base"
changed() {
    rm -rf "$images/changed"
    cp -a "$images/base" "$images/changed"
}
not_restored() { refuses "$1" "$2" cachot restore -d --name copy "$images/changed"; }
changed
truncate -s 4096 "$images/changed/memory"
not_restored "memory that is too short" truncated
changed
at=20000000
other=X
[ "$(dd if="$images/changed/memory" bs=1 skip=$at count=1 2>/dev/null | tr -d '\0')" != X ] || other=Y
printf %s "$other" | dd of="$images/changed/memory" bs=1 seek=$at conv=notrunc 2>/dev/null
not_restored "a byte of memory changed" 'damaged|changed|not what'
changed
mv "$images/changed/state" "$work/state-part"
ln -s "$work/state-part" "$images/changed/state"
not_restored "a part that is a symbolic link" 'symbolic link'
rm -rf "$images/changed"
CACHOT_STATE=$work/other refuses "a key that is not trusted" 'trusted' cachot restore -d --name copy "$images/base"
equal "nothing was started" "" "$(cachot ps -a | sed 1d)$(pidof cachot-vmm)"

# Two at once of one image, a name that is taken, an image that goes.
cachot restore -d --name left "$images/base" >"$work/left" 2>&1 &
left=$!
exits "two restores at once: the one" 0 cachot restore -d --name right "$images/base"
code=0
wait $left || code=$?
equal "two restores at once: the other" "0 left" "$code $(cat "$work/left")"
goes_on left "two restores at once: the one runs"
goes_on right "two restores at once: the other runs"
refuses "a restore whose name is taken" already cachot restore -d --name left "$images/base"
exits "right is ended" 0 cachot rm -f right
truncate -s 0 "$images/base/memory"
goes_on left "the image is truncated: the VM runs on"
exits "the image is deleted" 0 cachot snapshot delete "$images/base"
exits "the image is deleted: the VM has its secret" 0 cachot exec left -- sh -c 'grep -q number-0 /run/secrets/A'

# Ten deep, with another value each time. What was deleted is an ancestor all the same.
parent=left before=0
for number in 1 2 3 4 5 6 7 8 9 a; do
    exits "generation $number: snapshot" 0 cachot snapshot create "$parent" "$images/generation"
    exits "generation $number: its parent is ended" 0 cachot rm -f "$parent"
    equal "generation $number: the image does not hold the value of its parent" "" "$(holds $before "$images/generation")"
    parent=child$number before=$number
    TOKEN=value-of-this-generation-number-$number exits "generation $number: restore" 0 \
        cachot restore -d --name "$parent" "$images/generation"
    exits "generation $number: its own value" 0 cachot exec "$parent" -- grep -q "number-$number" /run/secrets/A
    rm -rf "$images/generation"
done
exits "the last image" 0 cachot snapshot create "$parent" "$images/last"
cachot snapshot inspect --json "$images/last" | tr -d ' \n' | sed -n 's/.*"lineage":\[\([^]]*\)\].*/\1/p' | tr ',' '\n' >"$work/lineage"
equal "the last image names all its ancestors" 11 "$(sort -u "$work/lineage" | wc -l | tr -d ' ')"
exits "the last image, with residue" 0 cachot snapshot create --dangerously-keep-residue "$parent" "$images/residue"
for number in 0 9 a; do
    equal "the last image does not hold value $number" "" "$(holds $number "$images/last")"
done
matches "control: the image with residue holds the last one" memory "$(holds a "$images/residue")"
exits "the last child is ended" 0 cachot rm -f "$parent"
rm -rf "$images/last" "$images/residue"

# The keeper dies, the monitor dies.
for process in keeper monitor; do
    for delay in 0.2 1; do
        start doomed
        case $process in
        keeper) victim=$(keeper_of doomed) ;;
        monitor) victim=$(pidof cachot-vmm) ;;
        esac
        cachot snapshot create doomed "$images/one" >/dev/null 2>&1 &
        command=$!
        sleep $delay
        kill -9 "$victim"
        wait $command
        until_ok "the $process killed after $delay s: the VM is gone" none_of cachot-vmm
        equal "the $process killed after $delay s: no value is on the disk" "" "$(holds 0 "$images")"
        whole_or_none "the $process killed after $delay s" "$images/one"
        equal "the $process killed after $delay s: nothing beside it" "" "$(leftovers)"
        # What a dead keeper left goes with the next start, what a dead monitor did with `rm`.
        cachot rm -f doomed >/dev/null 2>&1
    done
done
exits "the next start" 0 cachot run -- true
finish
