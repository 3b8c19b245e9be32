# Copies of a VM that runs on, and a session on a terminal that goes on in another one.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
for name in key one two; do value "$name" 72; done
holding src --secret "KEY=file:$values/key"

for name in one two; do
    echo "{\"KEY\": \"file:$values/$name\"}"
done >"$work/children"
exits "two children of a VM that runs" 0 cachot fork src --count 2 --names one,two --secrets-per-child "$work/children"
equal "they are named" "one two" "$(echo $out)"
holds src key
# As in children.sh: what is too short to be known may stay.
left='split-7|general-registers'
for child in one two; do
    looks "$child"
    matches "$child: the file is its own" "^value $("$probe" digest "$values/$child")$" "$seen"
    others=$(printf '%s\n' "$seen" | grep -Ev "^(triggered|value|done|freed-heap|$left)| same\$")
    equal "$child: all places are its own" "" "$others"
    same=$(printf '%s\n' "$seen" | grep -c ' same$')
    if [ "$same" -ge 17 ]; then ok "$child: $same of them"; else fail "$child: only $same of them: $seen"; fi
    for process in $(monitor_of "$child") $(keeper_of "$child"); do
        for name in one two key; do
            count=$(in_memory "$process" "$name")
            if [ "$name" = "$child" ]; then
                if [ "$count" -ge 1 ]; then ok "control: process $process of $child has its value"; else fail "process $process of $child has not its own value"; fi
            else
                equal "process $process of $child has nothing of $name" 0 "$count"
            fi
        done
    done
done
exits "no file of any VM has a value" 0 "$probe" scan "$CACHOT_STATE" --needle "$values/key" --needle "$values/one" --needle "$values/two"
exits "the children end" 0 cachot rm -f one two

printf '{"KEY": "env:NO_SUCH"}\n{"KEY": "file:%s"}\n' "$values/two" >"$work/children"
exits "a child without a value, of a workload at rest" 1 cachot fork src --count 2 --names one,two --quiesce-workload --secrets-per-child "$work/children"
matches "it is named" 'child 1.*KEY|KEY.*NO_SUCH' "$err"
matches "the other child runs" '^two$' "$out"
looks two
matches "with its value" "^value $("$probe" digest "$values/two")$" "$seen"
holds src key
refuses "a fork of no VM" 'no VM' cachot fork nobody --count 2
exits "they end" 0 cachot rm -f src two

# until_shows NAME PATTERN FILE
until_shows() { until_matches "$1" "$2" cat "$3"; }

# A session on a terminal, typed through a pipe.
mkfifo "$work/keys"
script -q -f -c "cachot run -i -t --name src --memory 128M --secret KEY=file:$values/key -- sh" "$work/first" <"$work/keys" >/dev/null 2>&1 &
session=$!
exec 3>"$work/keys"
echo 'held=$(cat /run/secrets/KEY); echo begun-$((40 + 2))' >&3
until_shows "a session" 'begun-42' "$work/first"
exits "an image of it, which ends it" 0 cachot snapshot create src "$images/session" --stop
exec 3>&-
wait $session

script -q -e -f -c "stty rows 31 cols 97; cachot restore -i --name back $images/session" "$work/second" <"$work/keys" >/dev/null 2>&1 &
session=$!
exec 3>"$work/keys"
echo 'echo on-$((40 + 3)); stty size; [ "$held" = "$(cat /run/secrets/KEY)" ] && echo same-$((40 + 4))' >&3
until_shows "it goes on in another terminal" 'on-43' "$work/second"
until_shows "of this one's size" '31 97' "$work/second"
until_shows "with its secret" 'same-44' "$work/second"
echo 'trap "echo caught-$((40 + 5))" INT; sleep 1000' >&3
sleep 2
printf '\003' >&3
until_shows "Ctrl-C is for the workload" 'caught-45' "$work/second"
echo 'exit 7' >&3
code=0
wait $session || code=$?
exec 3>&-
equal "its exit code is that of restore" 7 "$code"
finish
