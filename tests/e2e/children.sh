# Restored and forked VMs have the values that they are given, and nobody else's: other ones, longer ones, none.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
for name in key one two other; do value "$name" 72; done
# A text of more escapes: its percent-encoded form is longer, and all others are not.
value three 72 'a+b/c?'
value short 60
holding src --secret "KEY=file:$values/key" --secret "OTHER=file:$values/other"
exits "an image" 0 cachot snapshot create src "$images/image"

for name in one two three; do
    echo "{\"KEY\": \"file:$values/$name\"}"
done >"$work/children"
exits "three children, each with a value of its own" 0 cachot fork "$images/image" --count 3 --names one,two,three \
    --secrets-per-child "$work/children"
equal "they are named" "one two three" "$(echo $out)"

# Seven bytes at the end of a page are too few to be known: they stay what they were. So may general registers: those of
# a thread that was not on a CPU lie in the kernel's memory in the opposite order, as single runs of eight bytes.
left='split-7|general-registers'
for child in one two three; do
    looks "$child"
    matches "$child: the file is its own" "^value $("$probe" digest "$values/$child")$" "$seen"
    others=$(printf '%s\n' "$seen" | grep -Ev "^(triggered|value|done|freed-heap|$left)| same\$")
    [ "$child" != three ] || others=$(printf '%s\n' "$others" | grep -vx 'percent zero')
    equal "$child: all places are its own" "" "$others"
    same=$(printf '%s\n' "$seen" | grep -c ' same$')
    if [ "$same" -ge 17 ]; then ok "$child: $same of them"; else fail "$child: only $same of them: $seen"; fi
done
holds src key
for child in one two three; do
    for process in $(monitor_of "$child") $(keeper_of "$child"); do
        for name in one two three key; do
            count=$(in_memory "$process" "$name")
            if [ "$name" = "$child" ]; then
                if [ "$count" -ge 1 ]; then ok "control: process $process of $child has its value"; else fail "process $process of $child has not its own value"; fi
            else
                equal "process $process of $child has nothing of $name" 0 "$count"
            fi
        done
    done
done
for child in one two three; do
    cachot exec "$child" -- cat /run/secrets/KEY >/dev/null || fail "$child cannot read its secret"
done
exits "no file of any VM has a value" 0 "$probe" scan "$CACHOT_STATE" --needle "$values/key" --needle "$values/one" \
    --needle "$values/two" --needle "$values/three"
exits "the children end" 0 cachot rm -f one two three

# One child that has no value does not hurt the other.
printf '{"KEY": "env:NO_SUCH"}\n{"KEY": "file:%s"}\n' "$values/two" >"$work/children"
exits "a child without a value" 1 cachot fork "$images/image" --count 2 --names first,second --secrets-per-child "$work/children"
matches "it is named" 'child 1.*KEY|KEY.*NO_SUCH' "$err"
matches "the other child runs" '^second$' "$out"
looks second
matches "with its value" "^value $("$probe" digest "$values/two")$" "$seen"
exits "it ends" 0 cachot rm -f second

# A value of another length
exits "a shorter value" 0 cachot restore -d --name short --secret "KEY=file:$values/short" "$images/image"
matches "copies that it does not fit into are counted" 'KEY.*(copies|copy)|(copies|copy).*KEY' "$err"
looks short
matches "the file is right" "^value $("$probe" digest "$values/short")$" "$seen"
for place in heap stack environment pipe socket tmpfs private-copy split-20 end-of-page base64 base64-url hex percent json utf-16le; do
    matches "$place is zero" "^$place zero$" "$seen"
done
equal "no place has the old value" "" "$(printf '%s\n' "$seen" | grep ' old$' | grep -Ev "^($left) ")"
for process in $(monitor_of short) $(keeper_of short); do
    equal "process $process has nothing of the old value" 0 "$(in_memory "$process" key)"
    matches "control: process $process has the new one" '^[1-9]' "$(in_memory "$process" short)"
done
exits "it ends" 0 cachot rm -f short

# No value
exits "a secret less" 0 cachot restore -d --name less --drop-secret KEY "$images/image"
looks less
matches "the file is gone" '^value missing: .*(No such file|os error 2)' "$seen"
matches "places are zero" '^heap zero$' "$seen"
equal "no place has the old value" "" "$(printf '%s\n' "$seen" | grep ' old$' | grep -Ev "^($left) ")"
exits "the other secret is there" 0 cachot exec less -- sh -c 'ls /run/secrets; wc -c </run/secrets/OTHER'
equal "alone" "OTHER 72" "$(echo $out)"
exits "what is gone cannot be opened" 1 cachot exec less -- cat /run/secrets/KEY
matches "ENOENT" 'No such file' "$err"
exits "it ends" 0 cachot rm -f less

exits "the source ends" 0 cachot rm -f src
nothing_left
mv "$values/key" "$values/away"
refuses "a reference without a value" "KEY.*$values/key" cachot restore -d --name never "$images/image"
exits "all children without a value" 1 cachot fork "$images/image" --count 2
matches "a child without a value" 'KEY' "$err"
nothing_left
mv "$values/away" "$values/key"
refuses "an unknown secret to drop" 'NO_SUCH' cachot restore -d --name never --drop-secret NO_SUCH "$images/image"
finish
