#!/bin/sh
# Keeps a service of prunella running where there is no systemd: starts it, starts it again when it ends, ever more slowly.
#
#     supervisor start|stop|restart|status|run NAME        (serve or listen)
#
# It reads PREFIX/etc/NAME.env before each start, runs PREFIX/current, and writes PREFIX/run/NAME.log and NAME.last-exit.
set -eu
prefix=$(cd "$(dirname "$0")/.." && pwd)
action=${1:-status}
name=${2:-serve}
run=$prefix/run
mkdir -p "$run"
pid=$run/$name.supervisor.pid
child=

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

end_child() {
    [ -n "$child" ] || return 0
    kill -TERM "$child" 2>/dev/null || return 0
    # Whoever does not end is ended. The child is reaped by `wait` below, so that nobody waits for it here.
    (sleep 15 && kill -KILL "$child") >/dev/null 2>&1 &
    killer=$!
}

supervise() {
    echo $$ >"$pid"
    stopping='' again='' killer=''
    trap 'stopping=1; end_child' TERM INT
    # Not HUP: `nohup` has it ignored, and what was ignored cannot be trapped.
    trap 'again=1; end_child' USR1
    delay=1
    while [ -z "$stopping" ]; do
        again=''
        # A log that grew is begun anew; the last one is kept.
        if [ -s "$run/$name.log" ] && [ "$(wc -c <"$run/$name.log")" -gt 1000000 ]; then mv -f "$run/$name.log" "$run/$name.log.1"; fi
        begun=$(date +%s)
        (
            trap - TERM INT USR1
            if [ -r "$prefix/etc/$name.env" ]; then
                while IFS= read -r line || [ -n "$line" ]; do
                    value=${line#*=}
                    # As systemd reads them: quotes around a value are not of it.
                    case $value in '"'*'"' | "'"*"'") value=${value#?} value=${value%?} ;; esac
                    case $line in '' | '#'*) ;; *=*) export "${line%%=*}=$value" ;; esac
                done <"$prefix/etc/$name.env"
            fi
            exec "$prefix/current/bin/prunella" "$name"
        ) >>"$run/$name.log" 2>&1 </dev/null &
        child=$!
        echo "$child" >"$run/$name.pid"
        code=0
        wait "$child" || code=$?
        # `wait` ends at a signal, too; then it is waited for again.
        while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
        child=
        if [ -n "$killer" ]; then kill "$killer" 2>/dev/null || true; killer=''; fi
        rm -f "$run/$name.pid"
        [ -z "$stopping" ] || break
        if [ -n "$again" ]; then delay=1; continue; fi
        echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) exit code $code after $(($(date +%s) - begun)) s" >"$run/$name.last-exit"
        if [ $(($(date +%s) - begun)) -ge 60 ]; then delay=1; fi
        sleep $delay &
        wait $! || true
        delay=$((delay * 2))
        if [ $delay -gt 60 ]; then delay=60; fi
    done
    rm -f "$pid"
}

case $action in
    run) if alive "$pid"; then echo "$name is supervised already"; else supervise; fi ;;
    start)
        if ! alive "$pid"; then
            nohup "$0" run "$name" >/dev/null 2>&1 </dev/null &
        fi
        ;;
    restart)
        if alive "$pid"; then kill -USR1 "$(cat "$pid")"; else "$0" start "$name"; fi
        ;;
    stop)
        if alive "$pid"; then
            kill -TERM "$(cat "$pid")"
            waited=0
            while alive "$pid" && [ $waited -lt 150 ]; do sleep 0.1; waited=$((waited + 1)); done
        fi
        rm -f "$pid"
        ;;
    status)
        if alive "$pid" && alive "$run/$name.pid"; then echo "running, process $(cat "$run/$name.pid")"
        elif alive "$pid"; then echo "starting again; last: $(cat "$run/$name.last-exit" 2>/dev/null || echo none)"; exit 3
        else echo "stopped"; exit 3; fi
        ;;
    *) echo "usage: supervisor start|stop|restart|status|run NAME" >&2; exit 2 ;;
esac
