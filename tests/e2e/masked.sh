# What a workload prints: the host neither shows nor stores a value, in whatever form and pieces it comes.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
value key 72
cat >"$work/prints" <<'S2'
v=$(cat /run/secrets/KEY)
echo "mark-7f3a raw <$v>"
echo "base64 <$(printf %s "$v" | base64 -w 0)>"
echo "hex <$(printf %s "$v" | od -An -v -tx1 | tr -d ' \n')>"
printf 'two <'; printf %s "${v%????????????????????????????????????}"; printf %s "${v#????????????????????????????????????}"; echo '>'
echo "stderr <$v>" >&2
echo "<2>mark-7f3a kmsg <$v>" >/dev/kmsg
echo over
S2
masked='^(mark-7f3a raw|base64|hex|two|stderr) <(\*\*\*)+>$'
# stored: the files of the host's state that have the value in any form, and those with the mark
stored() { "$probe" scan "$CACHOT_STATE" --needle "$values/key" | sed -n 's/^hit \([^ ]*\) .*/\1/p' | sort -u; }

exits "a VM that nobody watches" 0 cachot run -d --name web --secret "KEY=file:$values/key" -- \
    sh -c "$(cat "$work/prints"); sleep 1000"
until_matches "it prints" '^over$' cachot logs web
equal "its log is masked" 5 "$(cachot logs web | grep -Ec "$masked")"
equal "its log has no form of the value" "" "$(cachot logs web >"$work/log" && greps key "$work/log")"
until_matches "so is its console" 'mark-7f3a kmsg <\*\*\*>' cachot logs --console web
exits "so is a further command" 0 cachot exec web -- sh -c "$(cat "$work/prints")"
equal "so is a further command: its output" 4 "$(printf '%s\n' "$out" | grep -Ec "$masked")"
equal "so is a further command: its errors" 1 "$(printf '%s\n' "$err" | grep -Ec "$masked")"
equal "no file of the host has it" "" "$(stored)"
exits "it ends" 0 cachot stop -t 0 web
equal "no file has it afterwards" "" "$(stored)"
matches "control: what it printed is there" output.log "$(grep -rl mark-7f3a "$CACHOT_STATE")"
matches "control: so is its console" console.log "$(grep -rl mark-7f3a "$CACHOT_STATE")"
exits "it is removed" 0 cachot rm web

exits "control: without a mask" 0 cachot run -d --no-mask --name web --secret "KEY=file:$values/key" -- \
    sh -c "$(cat "$work/prints"); sleep 1000"
until_matches "control: it prints" '^over$' cachot logs web
until_matches "control: on its console too" 'mark-7f3a kmsg <' cachot logs --console web
equal "control: the search of files finds it" "console.log output.log" "$(stored | sed 's,.*/,,' | xargs)"
cachot logs web >"$work/log"
matches "control: as it is" "raw <$(sed 's/[?"]/./g' "$values/key")>" "$(cat "$work/log")"
equal "control: grep finds it raw, as base64 and as hex" 3 "$(greps key "$work/log" | wc -l | tr -d ' ')"
exits "it is removed" 0 cachot rm -f web

exits "in the foreground" 0 cachot run --secret "KEY=file:$values/key" -- sh -c "$(cat "$work/prints")"
equal "in the foreground: output" 4 "$(printf '%s\n' "$out" | grep -Ec "$masked")"
equal "in the foreground: errors" 1 "$(printf '%s\n' "$err" | grep -Ec "$masked")"
cat >"$work/terminal" <<S
cachot run -i -t --secret KEY=file:$values/key -- sh -c '$(sed "s/'/\"/g" "$work/prints")'
S
script -q -c "sh $work/terminal" "$work/typescript" >/dev/null </dev/null
matches "on a terminal" 'raw <\*\*\*>' "$(cat "$work/typescript")"
equal "on a terminal: nothing" "" "$(greps key "$work/typescript")"
finish
