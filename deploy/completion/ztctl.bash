# bash completion of ztctl; zsh: autoload -U bashcompinit && bashcompinit && source this.
_ztctl() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= i
    local commands="status pods connections top policies certs explain dns why-denied trace log dump ca help version"
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --socket | -o | --output) ((i++)) ;;
        -*) ;;
        *) command=${COMP_WORDS[i]} && break ;;
        esac
    done
    case $before in
    --socket) COMPREPLY=($(compgen -f -- "$word")) && return ;;
    -o | --output) COMPREPLY=($(compgen -W "table json" -- "$word")) && return ;;
    --sort) COMPREPLY=($(compgen -W "bytes age" -- "$word")) && return ;;
    --pod) COMPREPLY=($(compgen -W "$(_ztctl_pods)" -- "$word")) && return ;;
    esac
    case $command in
    "") COMPREPLY=($(compgen -W "$commands --socket -o" -- "$word")) ;;
    connections) COMPREPLY=($(compgen -W "--pod --peer --sort --limit -o" -- "$word")) ;;
    top) COMPREPLY=($(compgen -W "--pod --once -o" -- "$word")) ;;
    why-denied) COMPREPLY=($(compgen -W "-n -o" -- "$word")) ;;
    trace) COMPREPLY=($(compgen -W "$(_ztctl_pods) --follow --off -o" -- "$word")) ;;
    explain | dns) COMPREPLY=($(compgen -W "$(_ztctl_pods)" -- "$word")) ;;
    log) COMPREPLY=($(compgen -W "error warn info debug trace access=debug --reset" -- "$word")) ;;
    ca) COMPREPLY=($(compgen -W "issue" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "-o" -- "$word")) ;;
    esac
}

# The first column of the table, without its heading; nothing when no daemon answers.
_ztctl_pods() {
    local i arguments=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        [ "${COMP_WORDS[i]}" = --socket ] && arguments=(--socket "${COMP_WORDS[i + 1]}")
    done
    "${COMP_WORDS[0]}" "${arguments[@]}" pods 2>/dev/null | sed -n '2,$s/ .*//p'
}

complete -F _ztctl ztctl
