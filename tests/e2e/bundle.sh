# A bundle in a guest: every section where programs look for it, nothing on the host's disk, and the value of the
# bundle as it is then after a restore. $IN/identity is a private key of age, and $IN/recipient somebody else's public key.
. "$IN/lib.sh"
. "$IN/hold.sh"
guest_with_probe
value env 40
value token 40
value key 60
value settings 40
value upload 40
cp "$IN/identity" "$work/age.key"
chmod 600 "$work/age.key"
cat >"$work/config.yaml" <<C
secrets_dir: $work/bundles
secrets_age_key_path: $work/age.key
memory: 192M
C
export CACHOT_CONFIG="$work/config.yaml"
# quoted NAME: the value in single quotation marks of YAML
quoted() { printf "'%s'" "$(sed "s/'/''/g" "$values/$1")"; }
cat >"$work/plain.yaml" <<Y
version: 1
git:
  ssh_private_key: $(quoted key)
  known_hosts: github.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5
env:
  API_KEY: $(quoted env)
  MODE: of-the-bundle
claude:
  settings_json: $(quoted settings)
artifact:
  endpoint: http://10.77.0.1:8846/upload
  token: $(quoted upload)
ssh:
  keys:
    ci:
      key: $(quoted key)
Y
exits "a bundle is made" 0 cachot bundle encrypt default "$work/plain.yaml"
rm "$work/plain.yaml"
stored() { "$probe" scan "$1" --needle "$values/env" --needle "$values/key" --needle "$values/upload" | sed -n 's/^hit \([^ ]*\) .*/\1/p' | sort -u; }

exits "its sections are delivered" 0 cachot run --secrets-bundle -- sh -c \
    'ls -l /run/secrets; env; wc -c <"$CLAUDE_SETTINGS_PATH"; wc -c <"$ARTIFACT_TOKEN_PATH"'
for secret in API_KEY ARTIFACT_TOKEN CLAUDE_SETTINGS GIT_KNOWN_HOSTS GIT_SSH_KEY MODE SSH_KEY_ci; do
    matches "a file: $secret" "^-r-------- .* $(echo "$secret" | tr '[:lower:]' '[:upper:]')$" "$out"
done
matches "ssh's key and hosts" '^GIT_SSH_COMMAND=ssh -i /run/secrets/GIT_SSH_KEY -o IdentitiesOnly=yes -o UserKnownHostsFile=/run/secrets/GIT_KNOWN_HOSTS -o StrictHostKeyChecking=yes$' "$out"
matches "no prompt" '^GIT_TERMINAL_PROMPT=0$' "$out"
matches "claude's settings" '^40$' "$out"
matches "the endpoint" '^ARTIFACT_ENDPOINT=http://10.77.0.1:8846/upload$' "$out"
matches "a variable is exported, and masked" '^API_KEY=\*+$' "$out"
absent "its value is not shown" "$(cat "$values/env")" "$out"

cat >"$work/compare" <<'S'
printf %s "$API_KEY" | sha256sum
sha256sum </run/secrets/GIT_SSH_KEY
echo "$MODE $API_KEY_2"
S
exits "values are the bundle's" 0 cachot run --secrets-bundle default --env MODE=explicit --env API_KEY_2=x -- sh -c "$(cat "$work/compare")"
matches "of the environment" "^$(sha256sum <"$values/env")" "$out"
matches "of the key, with its last line's end" "^$(printf '%s\n' "$(cat "$values/key")" | sha256sum)" "$out"
matches "an explicit variable wins" '^explicit x$' "$out"
exits "a user reads its key" 0 cachot run --secrets-bundle default --user 65534:65534 -- sh -c 'stat -c "%a %u" /run/secrets/GIT_SSH_KEY; wc -c </run/secrets/GIT_SSH_KEY'
matches "it is the user's" '^400 65534$' "$out"
matches "all of it" '^61$' "$out"

echo 'git: {username: ci}' >"$work/token.yaml"
exits "a bundle with a user name" 0 cachot bundle encrypt token "$work/token.yaml"
exits "and a token" 0 sh -c "cachot bundle set-git token token <'$values/token'"
cat >"$work/ask" <<'S'
echo "$GIT_ASKPASS $GIT_TERMINAL_PROMPT"
$GIT_ASKPASS "Username for 'https://git.test': "
$GIT_ASKPASS "Password for 'https://ci@git.test': " | sha256sum
$GIT_ASKPASS "Password for 'http://ci@git.test': " | wc -c
$GIT_ASKPASS "Password for 'http://ci@git.test': " || echo "refused $?"
grep -c . "$GIT_ASKPASS"
stat -f -c %T /run
S
exits "git's question is answered" 0 cachot run --secrets-bundle token -- sh -c "$(cat "$work/ask")"
matches "by the program in the guest" '^/run/git-askpass 0$' "$out"
matches "with the user name" '^ci$' "$out"
matches "with the token" "^$(sha256sum <"$values/token")" "$out"
matches "nothing over http" '^0$' "$out"
matches "it is an error" '^refused 1$' "$out"
matches "it lies in memory" '^tmpfs$' "$out"

exits "a VM that is copied" 0 cachot run -d --name web --secrets-bundle -- sh -c 'while :; do sleep 1; done'
exits "a snapshot" 0 cachot snapshot create web "$work/image"
equal "no value is in it, nor in the state folder" "" "$(stored "$work/image"; stored "$CACHOT_STATE")"
exits "control: a snapshot that forgets nothing" 0 cachot snapshot create web "$work/residue" --dangerously-keep-residue
matches "control: the search finds values" memory "$(stored "$work/residue")"
exits "the VM goes" 0 cachot rm -f web
value env 41
exits "another value" 0 sh -c "cachot bundle set-env default API_KEY <'$values/env'"
exits "the copy comes back" 0 cachot restore -d --name web "$work/image"
exits "with the bundle's value as it is now" 0 cachot exec web -- sh -c 'sha256sum </run/secrets/API_KEY; echo "$GIT_TERMINAL_PROMPT"'
matches "the new value" "^$(sha256sum <"$values/env")" "$out"
matches "variables are still there" '^0$' "$out"
exits "it is removed" 0 cachot rm -f web

refuses "a bundle that is not there" 'bundle not found' cachot run --secrets-bundle none -- true
exits "a bundle for others" 0 cachot bundle encrypt others "$work/token.yaml" --recipient "$(cat "$IN/recipient")"
refuses "a bundle of others" 'none of the private keys' cachot run --secrets-bundle others -- true
exits "a secret twice" 125 cachot run --secrets-bundle --secret API_KEY=env:PATH -- true
matches "a secret twice: says why" 'API_KEY: the secret is declared more than once' "$err"
finish
