# Secrets in a guest: their files, owners and modes, every size and byte, and who may not read them.
. "$IN/lib.sh"
export API_TOKEN=tk-demo-0123456789abcdef0123456789abcdef
probe=$CACHOT_GUEST/probe
guest_with_probe

exits "the example of the README" 0 cachot run --secret API_KEY=env:API_TOKEN -- \
    sh -c 'ls -l /run/secrets && wc -c /run/secrets/API_KEY'
matches "ls shows mode, owner, length" '^-r-------- +1 root +root +40 .* API_KEY$' "$out"
matches "wc counts 40 bytes" '^40 /run/secrets/API_KEY$' "$out"

exits "the value is the variable's" 0 cachot run --no-mask --secret API_KEY=env:API_TOKEN -- cat /run/secrets/API_KEY
equal "byte for byte, with nothing added" "$API_TOKEN" "$out"

exits "another user is refused" 1 cachot run --secret API_KEY=env:API_TOKEN --user 65534:65534 -- cat /run/secrets/API_KEY
matches "with EACCES" 'Permission denied' "$err"
exits "its owner is not" 0 cachot run --no-mask --secret API_KEY=env:API_TOKEN,uid=65534,gid=65534 --user 65534:65534 -- cat /run/secrets/API_KEY
equal "and reads it" "$API_TOKEN" "$out"
exits "mode, uid and gid are the declaration's" 0 cachot run --secret API_KEY=env:API_TOKEN,mode=0440,uid=7,gid=9 -- stat -c '%a %u %g' /run/secrets/API_KEY
equal "mode, uid and gid" "440 7 9" "$out"

set --
sizes='1 2 7 8 255 256 4095 4096 4097 8192 65535 65537 1048575 1048576'
for size in $sizes; do
    "$probe" pattern "$size" "$size" >"$work/v$size"
    set -- "$@" --secret "V$size=file:$work/v$size"
done
cat >"$work/verify" <<S
for size in $sizes; do
    echo "\$size \$(probe verify /run/secrets/V\$size \$size \$size)"
    echo "\$size dd \$(dd if=/run/secrets/V\$size bs=1013 2>/dev/null | sha256sum)"
    echo "\$size cat \$(cat /run/secrets/V\$size | sha256sum)"
done
probe verify /run/secrets/V4096 9 4096 || echo "another value is told apart"
probe refuses-writes /run/secrets/V4096
S
exits "values of every size" 0 cachot run --initrd "$initrd" --memory 512M "$@" -- sh -c "$(cat "$work/verify")"
for size in $sizes; do
    sum=$(sha256sum <"$work/v$size")
    matches "$size bytes by every way" "^$size same bytes by read, read of odd sizes, pread backwards, mmap, sendfile, splice$" "$out"
    matches "$size bytes by dd" "^$size dd $sum" "$out"
    matches "$size bytes by cat" "^$size cat $sum" "$out"
done
matches "positive control" 'another value is told apart' "$out"
for way in 'open for writing' truncate unlink rename 'create beside it' 'map shared writable' \
    'map private writable' 'make a mapping writable' 'make a mapping executable'; do
    matches "refused: $way" "^$way: " "$out"
done

set --
for n in $(seq 10 73); do
    "$probe" pattern "$n" 100 >"$work/s$n"
    set -- "$@" --secret "S_$n=file:$work/s$n"
done
exits "64 secrets at once" 0 cachot run "$@" -- sh -c 'cd /run/secrets && ls | wc -l && sha256sum *'
matches "64 files" '^ *64$' "$out"
for n in $(seq 10 73); do
    matches "secret $n" "^$(sha256sum <"$work/s$n" | cut -d ' ' -f 1)  S_$n$" "$out"
done

exits "a guest without secrets has none" 0 cachot run -- sh -c 'ls -A /run/secrets 2>/dev/null | wc -l'
equal "no secret" 0 "$(echo "$out" | tr -d ' ')"
finish
