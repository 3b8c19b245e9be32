# VMs that nobody watches: started, listed, read, entered, paused, ended, removed, and killed.
. "$IN/lib.sh"
export TOKEN_A=value-of-the-first-secret-0001 TOKEN_B=value-of-the-second-secret-0002 TOKEN_C=value-of-the-third-secret-0003

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

# state_of NAME: its line of `ps -a` without name, age and command
state_of() { cachot ps -a | sed -n "s/^$1  *\([a-z]*\( ([0-9]*)\)\{0,1\}\)  .*/\1/p"; }

keeper_of() { cachot ps -a --json | grep -A 20 "\"name\": \"$1\"" | sed -n 's/.*"keeper": \([0-9]*\).*/\1/p' | head -n 1; }
log_has() { cachot logs "$2" | grep -q -- "$1"; }
none_of() { [ -z "$(pidof "$@")" ]; }

# Starts that fail say why in the foreground, and leave nothing.
exits "a secret without a value" 125 cachot run -d --name web --secret A=env:NOT_SET -- sleep 1000
matches "a secret without a value: says so" NOT_SET "$err"
equal "a secret without a value: no name" "" "$out"
exits "no such command" 127 cachot run -d --name web -- no-such-command
matches "no such command: says so" no-such-command "$err"
equal "no such command: no name" "" "$out"
exits "not executable" 126 cachot run -d --name web -- /etc/passwd
matches "not executable: says so" /etc/passwd "$err"
refuses "no kernel" kernel cachot run -d --name web --kernel "$IN/lib.sh" -- true
refuses "an illegal name" letters cachot run -d --name ../web -- true
refuses "--rm without -d" detach cachot run --rm -- true
nothing_left

# One that runs.
cat >"$work/workload" <<'S'
trap 'echo ended; exit 5' TERM
echo "key $A"
echo err >&2
while :; do sleep 0.1; done
S
exits "run -d" 0 cachot run -d --name web --secret A=env:TOKEN_A,env --secret B=env:TOKEN_B,env --secret C=env:TOKEN_C,env \
    --env B=of-run --env C=of-run --env D=of-run -- sh -c "$(cat "$work/workload")"
equal "run -d prints the name" web "$out"
equal "and nothing else" "" "$err"
refuses "a name that is taken" already cachot run -d --name web -- true
refuses "a name that is taken, in the foreground" already cachot run --name web -- true
equal "ps: its state" running "$(state_of web)"
exits "ps" 0 cachot ps
matches "ps: a line" '^web +running +.* 1 +256M +3 +sh -c' "$out"
absent "ps: no value" "$TOKEN_A" "$out"
exits "ps --json" 0 cachot ps --json
matches "ps --json: the state" '"state": "running"' "$out"
matches "ps --json: the secrets" '"B"' "$out"
matches "ps --json: no exit code" '"exit_code": null' "$out"
until_ok "logs: both streams" log_has '^err$' web
matches "logs: masked" '^key \*\*\*$' "$(cachot logs web)"
matches "logs --console: the kernel's lines" '^\[ *[0-9]+\.[0-9]+\] ' "$(cachot logs --console web)"
refuses "logs of no VM" 'no VM' cachot logs nobody
cachot logs -f web >"$work/followed" &
follower=$!

# Further commands.
exits "exec" 0 cachot exec web -- sh -c 'echo out; echo err >&2'
equal "exec: stdout" out "$out"
equal "exec: stderr" err "$err"
exits "exec: exit code" 7 cachot exec web -- sh -c 'exit 7'
exits "exec: a signal" 137 cachot exec web -- sh -c 'kill -9 $$'
exits "exec: not found" 127 cachot exec web -- no-such-command
matches "exec: not found: says so" no-such-command "$err"
exits "exec: not executable" 126 cachot exec web -- /etc/passwd
exits "exec: variables" 0 cachot exec --env C=of-exec --env E=of-exec web -- sh -c 'echo "$A|${#A}|$B|$C|$D|$E"'
equal "exec: variables: secrets, those of run, those of exec" "***|${#TOKEN_A}|of-run|of-exec|of-run|of-exec" "$out"
exits "exec: the files of secrets" 0 cachot exec web -- wc -c /run/secrets/A /run/secrets/B
matches "exec: the files of secrets: lengths" " ${#TOKEN_A} /run/secrets/A" "$out"
exits "exec: user and folder" 0 cachot exec --user 1234:99 --workdir /etc web -- sh -c 'id -u; id -g; pwd'
equal "exec: user and folder: as wanted" "1234 99 /etc" "$(echo $out)"
exits "exec: unknown user" 125 cachot exec --user no-such-user web -- true
matches "exec: unknown user: says so" no-such-user "$err"
exits "exec: nothing on stdin" 0 cachot exec web -- wc -c
equal "exec: stdin is empty without -i" 0 "$(echo $out)"
head -c 1048576 /dev/urandom >"$work/big"
equal "exec -i: 1 MiB there and back" "$(sha256sum <"$work/big")" "$(cachot exec -i web -- cat <"$work/big" | sha256sum)"

script -q -c "stty rows 31 cols 97; cachot exec -i -t web -- sh -c 'tty; stty size'" "$work/typescript" >/dev/null </dev/null
matches "exec -t: a terminal" '/dev/pts/' "$(cat "$work/typescript")"
matches "exec -t: of the same size" '31 97' "$(cat "$work/typescript")"

cachot exec web -- sh -c 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.1; done' >"$work/log" 2>&1 &
client=$!
until_ok "exec: output comes while it runs" grep -q ready "$work/log"
kill -TERM $client
code=0
wait $client || code=$?
equal "exec: SIGTERM reaches the command, whose exit code counts" 9 "$code"
matches "exec: SIGTERM reaches the command" '^caught$' "$(cat "$work/log")"

cachot exec web -- sh -c 'echo $$ >/tmp/pid; echo ready; exec sleep 1000' >"$work/log" 2>&1 &
client=$!
until_ok "exec: it runs" grep -q ready "$work/log"
exits "control: the command can be found" 0 cachot exec web -- sh -c 'kill -0 $(cat /tmp/pid)'
kill -9 $client
wait $client 2>/dev/null
until_ok "exec: a client that is killed ends its command" cachot exec web -- sh -c '! kill -0 $(cat /tmp/pid)'

clients=
for number in 10 11 12 13 14 15 16 17 18 19; do
    cachot exec web -- sh -c "echo begin $number; sleep 1; echo end $number; exit $number" >"$work/log$number" 2>&1 &
    clients="$clients $!"
done
number=9
for client in $clients; do
    number=$((number + 1))
    code=0
    wait "$client" || code=$?
    equal "ten at once: exit code of $number" "$number" "$code"
    equal "ten at once: output of $number" "begin $number end $number" "$(tr '\n' ' ' <"$work/log$number" | sed 's/ *$//')"
done

# Paused, and on.
refuses "resume of one that runs" running cachot resume web
exits "pause" 0 cachot pause web
equal "pause: its state" paused "$(state_of web)"
refuses "pause of one that is paused" paused cachot pause web
refuses "exec into one that is paused" 'resume web' cachot exec web -- true
exits "resume" 0 cachot resume web
equal "resume: its state" running "$(state_of web)"
exits "resume: it goes on" 0 cachot exec web -- true
refuses "pause of no VM" 'no VM' cachot pause nobody

# Ended.
exits "stop of no VM" 1 cachot stop nobody
matches "stop of no VM: says so" 'no VM.*nobody' "$err"
exits "stop" 0 cachot stop web
equal "stop prints the name" web "$out"
equal "stop: the workload's exit code counts" "exited (5)" "$(state_of web)"
wait $follower
matches "logs -f ends with the VM, and has its last words" '^ended$' "$(cat "$work/followed")"
equal "logs -f: all of it" "$(cachot logs web)" "$(cat "$work/followed")"
equal "ps lists it no more" "" "$(cachot ps | sed 1d)"
refuses "exec into one that has ended" ended cachot exec web -- true
refuses "pause of one that has ended" ended cachot pause web
exits "stop of one that has ended" 1 cachot stop web
refuses "its name stays taken" already cachot run -d --name web -- true
exits "rm" 0 cachot rm web
exits "rm of no VM" 1 cachot rm web
equal "rm leaves nothing" "" "$(ls -A "$CACHOT_STATE/vms")"

# Ended by themselves.
exits "one that ends by itself" 0 cachot run -d --name short -- sh -c 'echo last words; exit 3'
exits "one that ends by itself and is to leave nothing" 0 cachot run -d --rm --name brief -- true
ended() { [ "$(state_of short)" = "exited (3)" ]; }
until_ok "ps -a: its exit code" ended
equal "its logs are kept" "last words" "$(cachot logs short)"
equal "logs -f of one that has ended ends" "last words" "$(cachot logs -f short)"
until_ok "--rm: all of it goes" [ ! -e "$CACHOT_STATE/vms/brief" ]
exits "rm of one that has ended by itself" 0 cachot rm short

# Against their will.
exits "one that does not listen" 0 cachot run -d --name deaf -- sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done'
begun=$(date +%s)
exits "stop -t 1" 0 cachot stop -t 1 deaf
took=$(($(date +%s) - begun))
if [ $took -ge 1 ] && [ $took -le 8 ]; then ok "stop -t 1: in time"; else fail "stop -t 1 took $took s"; fi
equal "stop -t 1: killed" "exited (137)" "$(state_of deaf)"
exits "rm of it" 0 cachot rm deaf

exits "one that is paused" 0 cachot run -d --name stiff -- sleep 1000
exits "it is paused" 0 cachot pause stiff
begun=$(date +%s)
exits "stop of one that is paused" 0 cachot stop stiff
took=$(($(date +%s) - begun))
if [ $took -le 8 ]; then ok "stop of one that is paused: at once"; else fail "stop of a paused VM took $took s"; fi
equal "stop of one that is paused: killed" "exited (137)" "$(state_of stiff)"
exits "rm of that" 0 cachot rm stiff
nothing_left

# Killed from outside.
exits "one whose keeper dies" 0 cachot run -d --name lost -- sleep 1000
kill -9 "$(keeper_of lost)"
until_ok "the monitor goes with its keeper" none_of cachot-vmm
equal "it is listed no more" "" "$(cachot ps -a | sed 1d)"
refuses "exec into it" 'VM' cachot exec lost -- true
exits "one whose monitor dies, of the same name" 0 cachot run -d --name lost -- sh -c 'echo alive; sleep 1000'
until_ok "it speaks" log_has alive lost
kill -9 "$(pidof cachot-vmm)"
died() { [ "$(state_of lost)" = "exited (125)" ]; }
until_ok "ps -a: it has ended" died
matches "ps -a --json: how" '"error": ".*monitor.*(kill|signal)' "$(cachot ps -a --json)"
equal "its logs are kept as well" alive "$(cachot logs lost)"
exits "rm of what is left" 0 cachot rm lost

# A terminal that goes, and several at once.
script -q -c "cachot run -d --name left -- sleep 1000" "$work/typescript" >/dev/null </dev/null
matches "run -d on a terminal prints the name" '^left' "$(cat "$work/typescript")"
exits "run -d once more" 0 cachot run -d --name right -- sleep 1000
exits "it outlives its terminal" 0 cachot exec left -- true
exits "stop -t 0 of several, and of one that there is not" 1 cachot stop -t 0 left nobody right
equal "stop of several: those that were ended" "left right" "$(echo $out)"
equal "stop -t 0: killed" "exited (137) exited (137)" "$(state_of left) $(state_of right)"
exits "rm of several" 0 cachot rm left right
exits "one that runs" 0 cachot run -d --name last -- sleep 1000
exits "rm of one that runs" 1 cachot rm last
matches "rm of one that runs: says so" running "$err"
exits "rm -f" 0 cachot rm -f last
finish
