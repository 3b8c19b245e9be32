#!/bin/sh
# Answers git when it asks for a user name or a password over https (gitcredentials(7), GIT_ASKPASS).
case $1 in
Username*) printf '%s\n' "${GIT_USERNAME:-x-access-token}" ;;
*) exec cat /run/secrets/GIT_TOKEN ;;
esac
