#!/bin/bash
# Builds "mini", the small bootable test image, from Debian packages and without root.
#
#   images/mini/build.sh [--force]        result: images/mini/mini.qcow2 (about 16 MB, 64 MiB virtual)
#
# What is in it: an MBR disk with one bootable FAT partition that holds syslinux (BIOS), systemd-boot (UEFI), the Debian
# cloud kernel and an initramfs: busybox, the virtio drivers, dropbear and the scripts of rootfs/. The initramfs is the
# root file system; the FAT partition, mounted on /boot, is all that outlives a reboot.
#
# Nothing is done when the result is newer than this script and rootfs/ (a checksum of both is kept beside it).
# Packages are fetched once into build/, which may be removed at any time.
#
# Needs (all of them Debian packages): apt with package lists, dpkg, kmod, cpio, gzip, fdisk, dosfstools, mtools,
# syslinux, binutils, qemu-utils.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
result=$here/mini.qcow2
build=$here/build
disk_mib=64            # virtual size: the smallest root disk that a flavor may give
fat_start=2048         # first sector of the boot partition
kernel_metapackage=linux-image-cloud-amd64
modules="virtio_pci virtio_blk virtio_net virtio_scsi virtio_balloon virtio_rng virtio_console sd_mod sr_mod ata_piix
         isofs vfat ext4 crc32c_generic nls_ascii nls_cp437 nls_utf8 button evdev"
ssh_packages="dropbear-bin libtomcrypt1 libtommath1 libgmp10 libcrypt1 zlib1g libc6"
kernel_arguments="console=tty1 console=ttyS0,115200 quiet loglevel=3 tsc=reliable no_timer_check"
export PATH=$PATH:/sbin:/usr/sbin LC_ALL=C MTOOLS_SKIP_CHECK=1

say() { echo "mini: $*" >&2; }

inputs() { ( cd "$here" && find build.sh rootfs -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1 ); }

# ------------------------------------------------------------------------------------------------------------ packages

# fetch NAME: unpacks a package into build/packages/NAME, downloading it the first time.
fetch() {
    local into=$build/packages/$1
    [ -e "$into/.complete" ] && return
    say "package $1"
    rm -rf "$into" && mkdir -p "$into" "$build/debs"
    if ! ls "$build/debs/$1"_*.deb >/dev/null 2>&1; then
        ( cd "$build/debs" && apt-get download -qq "$1" 2>"$build/apt.log" ) \
            || { cat "$build/apt.log" >&2; say "cannot fetch $1; has 'apt-get update' run?"; exit 1; }
    fi
    dpkg-deb -x "$(ls "$build/debs/$1"_*.deb | tail -1)" "$into"
    touch "$into/.complete"
}

fetch_all() {
    kernel=$(apt-cache depends --important "$kernel_metapackage" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    [ -n "$kernel" ] || { say "no $kernel_metapackage in the package lists; has 'apt-get update' run?"; exit 1; }
    local name
    for name in "$kernel" busybox-static syslinux-common systemd-boot-efi $ssh_packages; do fetch "$name"; done
    kernel_tree=$build/packages/$kernel
    release=$(basename "$kernel_tree"/lib/modules/*)
}

# ----------------------------------------------------------------------------------------------------------- initramfs

# Prints the files of module $1 and of everything it needs.
module_files() {
    awk -F: -v wanted="${1//-/_}" '
        { name = $1; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name) }
        name == wanted { print $1; n = split($2, needed, " "); for (i = 1; i <= n; i++) print needed[i] }
    ' "$kernel_tree/lib/modules/$release/modules.dep"
}

add_busybox() {
    install -D -m 755 "$build/packages/busybox-static/bin/busybox" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r applet; do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
}

add_modules() {
    local module file
    depmod -b "$kernel_tree" "$release"         # the package comes without modules.dep
    for module in $modules; do module_files "$module"; done | sort -u | while read -r file; do
        install -D -m 644 "$kernel_tree/lib/modules/$release/$file" "$root/lib/modules/$release/$file"
    done
    cp "$kernel_tree/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$release/"
    # Stripping takes the signature away too: without it a module loads about twice as fast in an emulated machine.
    find "$root/lib/modules" -name '*.ko' -exec objcopy --strip-debug {} \;
    depmod -b "$root" "$release"
    ( cd "$root/lib/modules/$release" && rm -f modules.*.bin modules.builtin* modules.{order,symbols,devname,softdep} )
}

add_ssh() {
    local libraries=$root/lib/x86_64-linux-gnu library
    install -D -m 755 "$build/packages/dropbear-bin/usr/sbin/dropbear" "$root/usr/sbin/dropbear"
    install -D -m 755 "$build/packages/dropbear-bin/usr/bin/dropbearkey" "$root/usr/bin/dropbearkey"
    mkdir -p "$libraries" "$root/lib64"
    for library in libtomcrypt.so.1 libtommath.so.1 libgmp.so.10 libcrypt.so.1 libz.so.1 libc.so.6 ld-linux-x86-64.so.2; do
        cp -L "$(find "$build"/packages/*/ -name "$library" | head -1)" "$libraries/$library"
    done
    ln -s ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/lib64/ld-linux-x86-64.so.2"
}

make_initramfs() {
    root=$build/root
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp,root,home,mnt,boot,usr/bin,usr/sbin,var/log}
    add_busybox
    cp -a "$here/rootfs/." "$root/"
    chmod 755 "$root"/{init,etc/rc,sbin/*,www/cgi-bin/*,etc/acpi/PWRF/00000080}
    add_modules
    add_ssh
    echo "mini, kernel $release" > "$root/etc/mini-release"
    ( cd "$root" && find . -print0 | sort -z | cpio --null -o -H newc --owner 0:0 --quiet | gzip -9n ) > "$build/initrd.gz"
}

# ---------------------------------------------------------------------------------------------------------------- disk

make_disk() {
    local disk=$build/disk.raw
    local fat="$disk@@$(( fat_start * 512 ))"
    rm -f "$disk" && truncate -s "${disk_mib}M" "$disk"
    echo "$fat_start,,e,*" | sfdisk -q --no-tell-kernel "$disk"
    mkfs.vfat -F 16 -n MINI-BOOT --offset $fat_start -h $fat_start "$disk" $(( disk_mib * 1024 - fat_start / 2 )) >/dev/null
    mcopy -i "$fat" "$kernel_tree/boot/vmlinuz-$release" ::vmlinuz
    mcopy -i "$fat" "$build/initrd.gz" ::initrd.gz
    add_bios_boot "$disk" "$fat"
    add_uefi_boot "$fat"
    qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$disk" "$result.new"
}

add_bios_boot() {
    printf '%s\n' "DEFAULT mini" "TIMEOUT 1" "PROMPT 0" "LABEL mini" "  LINUX /vmlinuz" "  INITRD /initrd.gz" \
        "  APPEND $kernel_arguments" > "$build/syslinux.cfg"
    mcopy -i "$2" "$build/syslinux.cfg" ::syslinux.cfg
    syslinux --install --offset $(( fat_start * 512 )) "$1"
    dd if="$build/packages/syslinux-common/usr/lib/syslinux/mbr/mbr.bin" of="$1" bs=440 count=1 conv=notrunc status=none
}

add_uefi_boot() {
    printf '%s\n' "timeout 0" "default mini.conf" > "$build/loader.conf"
    printf '%s\n' "title mini" "linux /vmlinuz" "initrd /initrd.gz" "options $kernel_arguments" > "$build/mini.conf"
    mmd -i "$1" ::EFI ::EFI/BOOT ::loader ::loader/entries
    mcopy -i "$1" "$build/packages/systemd-boot-efi/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
    mcopy -i "$1" "$build/loader.conf" ::loader/loader.conf
    mcopy -i "$1" "$build/mini.conf" ::loader/entries/mini.conf
}

# ---------------------------------------------------------------------------------------------------------------- main

mkdir -p "$build"
exec 9>"$build/.lock" && flock 9              # two builds at once: the second finds the work done
sum=$(inputs)
if [ "${1:-}" != --force ] && [ -e "$result" ] && [ "$(cat "$build/inputs" 2>/dev/null)" = "$sum" ]; then exit 0; fi
fetch_all
make_initramfs
make_disk
# A new file, renamed: guests that run on the old one keep it.
mv "$result.new" "$result"
echo "$sum" > "$build/inputs"
say "$(( $(stat -c %s "$result") / 1000000 )) MB, initramfs $(( $(stat -c %s "$build/initrd.gz") / 1000 )) kB: $result"
