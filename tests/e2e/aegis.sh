# aegis: secrets of its database in guests; and the four tests that its specification names: secret_injection,
# secret_not_on_disk, secret_reinjection, and that no answer has a secret.
. "$IN/lib.sh"
for name in aegis-older.db master.key rootfs.ext4; do
    cp "$IN/$name" "$work/$name"
    chmod 600 "$work/$name"
done
# What is in the database: of the workspace, and of an app.
workspace=aegis-7c1d0104 app=aegis-7c1d0105
head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/value"
value=$(cat "$work/value")

exits "import" 0 cachot secret import aegis --db "$work/aegis-older.db" --key "$work/master.key"
matches "import: an app's secret is an instance's" '^app-web/API_KEY +API_KEY +instance:app-web +14$' "$out"
exits "secret set" 0 cachot secret set KEY --from "file:$work/value"

# secret_injection
show="printf %s \"\$API_KEY\""
exits "secret_injection" 0 cachot run --no-mask --secret API_KEY=store:API_KEY,env -- sh -c "$show"
equal "secret_injection: the variable has the value" "$workspace" "$out"
exits "secret_injection: of an app" 0 cachot run --no-mask --name app-web --secret API_KEY=store:API_KEY,env -- sh -c "$show"
equal "secret_injection: the app's own wins" "$app" "$out"
exits "explicit env" 0 cachot run --no-mask --secret API_KEY=store:API_KEY,env --env API_KEY=explicit -- sh -c "$show; cat /run/secrets/API_KEY"
equal "explicit env: wins over the secret's variable" "explicit$workspace" "$out"
exits "masked" 0 cachot run --secret API_KEY=store:API_KEY,env -- sh -c "$show"
equal "masked: unless --no-mask" '***' "$out"
exits "all of the store" 0 cachot run --no-mask --secret '*,env' --secret KEY="file:$work/master.key" -- \
    sh -c "$show; echo; ls /run/secrets; wc -c </run/secrets/KEY"
equal "all of the store: but what is declared otherwise" "$(printf '%s\nAPI_KEY\nKEY\n32' "$workspace")" "$out"
refuses "a missing name" 'API_KEZ: there is no secret API_KEZ' cachot run --secret API_KEY=store:API_KEY --secret API_KEZ=store:API_KEZ -- true

# secret_not_on_disk: the workload reads and uses it, and writes something else.
# By its path: busybox's shell takes its own one otherwise, which reads no binary files.
gnu_grep=$(which grep)
# holds FILE TEXT: in how many lines of the file, or files, the text is
holds() { cat "$1"* | "$gnu_grep" -acF -- "$2"; }
exits "secret_not_on_disk" 0 cachot run --rootfs "$work/rootfs.ext4,rw" --secret KEY=store:KEY,env -- \
    sh -c 'test "$KEY" = "$(cat /run/secrets/KEY)" && cat /run/secrets/KEY >/dev/null && echo plainly-there >/home/app/file; busybox sync'
equal "secret_not_on_disk: the disk has no value" 0 "$(holds "$work/rootfs.ext4" "$value")"
if [ "$(holds "$work/rootfs.ext4" plainly-there)" -gt 0 ]; then ok "control: what was written is there"; else fail "control: nothing was written"; fi
exits "control" 0 cachot run --rootfs "$work/rootfs.ext4,rw" --secret KEY=store:KEY -- sh -c 'cat /run/secrets/KEY >/home/app/copy; busybox sync'
if [ "$(holds "$work/rootfs.ext4" "$value")" -gt 0 ]; then ok "control: a copy is found"; else fail "control: the copy is not found"; fi

# secret_reinjection: after a stop, and from a snapshot.
workload='while :; do sha256sum /run/secrets/KEY; sleep 1; done'
digest=$(sha256sum <"$work/value" | cut -d ' ' -f 1)
start() { cachot run -d --name again --secret KEY=store:KEY -- sh -c "$workload"; }
exits "a VM" 0 start
exits "its snapshot" 0 cachot snapshot create again "$work/image"

# Not in an answer, while it runs.
{
    cachot ps -a --json
    cachot logs again
    cachot snapshot inspect "$work/image" --json
    cachot secret list --json
    cachot secret history KEY --json
    cachot secret audit --json
    cachot key status --json
    for path in vm metrics secrets; do
        curl -s --unix-socket "$CACHOT_STATE/vms/again/api.sock" "http://vm/v1/$path"
    done
} >"$work/answers" 2>&1
matches "answers: there are some" '"name": "KEY"' "$(cat "$work/answers")"
absent "answers: no secret" "$value" "$(cat "$work/answers")"
absent "answers: no secret in base64" "$(base64 -w 0 <"$work/value" | cut -c 1-24)" "$(cat "$work/answers")"
cachot secret export KEY --yes >>"$work/answers"
matches "control: it is found where it was exported to" "$value" "$(cat "$work/answers")"
equal "the image has no value" 0 "$(holds "$work/image/" "$value")"
if [ "$(holds "$work/image/" "sha256sum /run/secrets/KEY")" -gt 0 ]; then ok "control: it has the workload"; else fail "control: it has no workload"; fi

exits "secret_reinjection: it stops" 0 cachot stop again -t 1
exits "secret_reinjection: it is removed" 0 cachot rm again
exits "secret_reinjection: it starts again" 0 start
sleep 5
matches "secret_reinjection: it has the value" "^$digest " "$(cachot logs again | tail -n 1)"
exits "it ends" 0 cachot rm -f again
exits "secret_reinjection: from a snapshot" 0 cachot restore "$work/image" -d --name back
sleep 5
matches "secret_reinjection: it has the value, too" "^$digest " "$(cachot logs back | tail -n 1)"
exits "it ends, too" 0 cachot rm -f back
exits "secret delete" 0 cachot secret delete KEY
refuses "what is deleted is not started with" 'there is no secret KEY' start
finish
