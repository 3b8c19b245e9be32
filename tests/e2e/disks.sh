# A writable disk: an image never has a value on it, and the page cache comes back.
. "$IN/lib.sh"
. "$IN/hold.sh"
value key 72
cp "$IN/rootfs.ext4" "$work/disk"
exits "a VM with a disk" 0 cachot run -d --name src --memory 128M --rootfs "$work/disk,rw" --secret "KEY=file:$values/key" -- \
    sh -c 'until [ -e /tmp/begin ]; do busybox sleep 0.2; done; probe hold /run/secrets/KEY --watch --trigger /tmp/look --dir /root'
cachot exec -i src -- sh -c 'cat >/bin/probe; busybox chmod 755 /bin/probe' <"$probe" || fail "the probe cannot be brought in"
# From now on the guest writes to its disk only when it is told to.
exits "the disk is quiet" 0 cachot exec src -- sh -c 'busybox sync; echo 0 >/proc/sys/vm/dirty_writeback_centisecs; echo >/tmp/begin'
until_matches "a place is in the page cache of the disk" '^holding 22 places$' cachot logs src
holds src key
matches "it is the value" '^page-cache:/root same$' "$seen"

exits "an image" 0 cachot snapshot create src "$images/image"
forgets image key
if [ -s "$images/image/disk-0" ]; then ok "it has a copy of the disk"; else fail "it has no copy of the disk"; fi
exits "a restore" 0 cachot restore -d --name back "$images/image"
holds back key
matches "with the page cache" '^page-cache:/root same$' "$seen"
exits "it writes to its own disk" 0 cachot exec back -- sh -c 'echo its own >/root/own && busybox sync && cat /root/own'
exits "and to no other" 1 cachot exec src -- cat /root/own
exits "it ends" 0 cachot rm -f back

exits "the value goes to the disk" 0 cachot exec src -- busybox sync
exits "control: it is there" 1 "$probe" scan "$work/disk" --needle "$values/key"
offset=$(printf '%s\n' "$out" | sed -n 's/^hit [^ ]* \([0-9]*\) raw 72$/\1/p')
refuses "no image" "/dev/vda.*($offset|$(printf '%#x' "$offset"))" cachot snapshot create src "$images/refused"
refuses "--on-residue is for memory" '/dev/vda' cachot snapshot create src "$images/refused" --on-residue redact
equal "nothing was published" image "$(ls -A "$images")"
holds src key

exits "it is overwritten" 0 cachot exec src -- sh -c 'busybox dd if=/dev/zero of=/root/held bs=4096 count=1 conv=notrunc 2>/dev/null; busybox rm /root/held; busybox sync'
exits "control: it is gone" 0 "$probe" scan "$work/disk" --needle "$values/key"
exits "an image again" 0 cachot snapshot create src "$images/again"
forgets again key
looks src
equal "all other places have the value" "page-cache:/root zero" "$(printf '%s\n' "$seen" | grep -Ev '^(triggered|value|done|freed-heap)| same$')"
exits "it ends" 0 cachot rm -f src
finish
