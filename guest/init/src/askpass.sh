#!/bin/sh
# Answers git when it asks for a user name or a password over https (gitcredentials(7), GIT_ASKPASS), and nothing else:
# over http anybody between here and there would read the token.
case $1 in
"Username for 'https://"*) printf '%s\n' "${GIT_USERNAME:-x-access-token}" ;;
"Password for 'https://"*) exec cat /run/secrets/GIT_TOKEN ;;
*) exit 1 ;;
esac
