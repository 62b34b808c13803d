#!/usr/bin/env bash
# Spreads what a network interface receives over CPUs: a queue for each, its interrupts to one CPU
# each; where the hardware has too few queues, the kernel spreads them (RPS). README.md beside this
# file says why and when not. Lasts until the next start of the machine.
set -euo pipefail

usage="usage: nic.sh [--dry-run] INTERFACE [CPUS]
CPUS: a list such as 0-3,8; by default all that are online"

dry_run=
if [ "${1-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
interface=${1:?"$usage"}
cpu_list=${2:-$(cat /sys/devices/system/cpu/online)}
device=/sys/class/net/$interface
[ -d "$device" ] || { echo "nic.sh: there is no interface $interface" >&2; exit 1; }

# Says what it does, and does it.
run() {
    echo "$*"
    [ -n "$dry_run" ] || "$@"
}

write() {
    echo "echo $1 > $2"
    [ -n "$dry_run" ] || echo "$1" > "$2"
}

expand() {
    local run
    for run in ${1//,/ }; do
        seq "${run%-*}" "${run#*-}"
    done
}

# CPU numbers as the kernel's masks: hexadecimal, in groups of 32 bits, the highest first.
mask() {
    local -a groups=()
    local cpu
    for cpu in "$@"; do
        while [ ${#groups[@]} -le $((cpu / 32)) ]; do groups+=(0); done
        groups[cpu / 32]=$((groups[cpu / 32] | 1 << cpu % 32))
    done
    local text='' group
    for group in "${groups[@]}"; do
        text=$(printf '%08x' "$group")${text:+,$text}
    done
    echo "$text"
}

queues() {
    find "$device/queues/" -maxdepth 1 -name 'rx-*' | sort -V
}

# The interrupts of its queues: of a virtio device those of the PCI device that it sits on. Without
# traffic a queue has none yet, so they are known by their numbers and not by what they counted.
interrupts() {
    local folder
    for folder in "$device/device/msi_irqs" "$device/device/../msi_irqs"; do
        if [ -d "$folder" ]; then
            find "$folder/" -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n
            return
        fi
    done
}

mapfile -t cpus < <(expand "$cpu_list")

# 1. A queue for each CPU, if the hardware has so many.
if command -v ethtool > /dev/null; then
    most=$(ethtool -l "$interface" 2> /dev/null | awk '/^Combined:/ { print $2; exit }') || most=
    if [[ ${most:-} =~ ^[0-9]+$ ]] && [ "$most" -gt 1 ]; then
        wanted=$((most < ${#cpus[@]} ? most : ${#cpus[@]}))
        run ethtool -L "$interface" combined "$wanted" || true
    fi
else
    echo "# no ethtool: the number of queues stays as it is"
fi

# 2. One CPU after the other for the interrupts.
if pgrep -x irqbalance > /dev/null; then
    echo "# irqbalance runs and will move them again: systemctl disable --now irqbalance"
fi
place=0
while read -r interrupt; do
    write "${cpus[place % ${#cpus[@]}]}" "/proc/irq/$interrupt/smp_affinity_list"
    place=$((place + 1))
done < <(interrupts)

# 3. Fewer queues than CPUs: the CPU that gets the interrupt hands packets on, by flow.
mapfile -t receiving < <(queues)
if [ "${#receiving[@]}" -lt "${#cpus[@]}" ]; then
    spread=$(mask "${cpus[@]}")
    for queue in "${receiving[@]}"; do
        write "$spread" "$queue/rps_cpus"
    done
fi
