# What a user may rely on: streams, exit codes, signals, variables, users, folders, time limits.
. "$IN/lib.sh"
export TOKEN=from-the-secret-store-1234567890

for code in 0 1 7 42 124 125 255; do
    exits "exit code $code" "$code" cachot run -- sh -c "exit $code"
done
exits "a signal" 137 cachot run -- sh -c 'kill -9 $$'
exits "not found" 127 cachot run -- no-such-command
matches "not found: says so" 'no-such-command' "$err"
exits "not executable" 126 cachot run -- /etc/passwd
exits "stdout and stderr are apart" 0 cachot run -- sh -c 'echo out; echo err >&2'
equal "stdout" out "$out"
equal "stderr" err "$err"

equal "stdin is connected with -i" "3 lines" "$(printf 'a\nb\nc\n' | cachot run -i -- sh -c 'echo $(wc -l) lines')"
equal "stdin is empty without" 0 "$(echo x | cachot run -- wc -c | tr -d ' ')"
dd if=/dev/urandom of="$work/big" bs=1k count=3000 2>/dev/null
equal "3 MB through the guest" "$(sha256sum <"$work/big")" "$(cachot run -i -- cat <"$work/big" | sha256sum)"
equal "3 MB from the guest" 3000000 "$(cachot run -- sh -c 'head -c 3000000 /dev/zero' | wc -c | tr -d ' ')"

exits "variables" 0 cachot run --no-mask --env A=1 --env 'B=two words' --secret T=env:TOKEN,env --secret U=env:TOKEN,env --env U=plain -- \
    sh -c 'echo "$A|$B|$T|$U"'
equal "variables: plain wins over secret" "1|two words|$TOKEN|plain" "$out"
printf 'DB_PASSWORD=hunter2-but-longer\n# a comment\nexport APP_ENV="dev mode"\n' >"$work/app.env"
exits "a dotenv file" 0 cachot run --no-mask --secrets-env-file "$work/app.env" -- sh -c 'ls /run/secrets; echo "$DB_PASSWORD|$APP_ENV"'
equal "a dotenv file: files and variables" "APP_ENV DB_PASSWORD hunter2-but-longer|dev mode" "$(echo $out)"

exits "user by number" 0 cachot run --user 1234:99 -- sh -c 'id -u; id -g'
equal "user by number" "1234 99" "$(echo $out)"
exits "unknown user" 125 cachot run --user no-such-user -- true
matches "unknown user: says so" no-such-user "$err"
exits "working directory" 0 cachot run --workdir /etc -- pwd
equal "working directory" /etc "$out"
exits "missing working directory" 125 cachot run --workdir /no/such -- true
matches "missing working directory: says so" /no/such "$err"

exits "time limit" 124 cachot run --timeout 3s -- sleep 100
exits "time limit against a process that ignores SIGTERM" 124 cachot run --timeout 3s -- sh -c 'trap "" TERM; while :; do sleep 1; done'

cachot run -- sh -c 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.1; done' >"$work/log" 2>&1 &
vm=$!
for _ in $(seq 100); do
    grep -q ready "$work/log" && break
    sleep 0.3
done
kill -TERM $(pidof cachot)
code=0
wait $vm || code=$?
matches "SIGTERM reaches the workload" '^caught$' "$(cat "$work/log")"
equal "whose exit code counts" 9 "$code"

script -q -c "stty rows 31 cols 97; cachot run -i -t -- sh -c 'tty; stty size'" "$work/typescript" >/dev/null </dev/null
matches "a terminal" '/dev/pts/' "$(cat "$work/typescript")"
matches "of the same size" '31 97' "$(cat "$work/typescript")"
finish
