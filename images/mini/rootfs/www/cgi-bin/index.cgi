#!/bin/sh
# The page at /. User data may put its own /www/index.html before it.
printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
name=$(hostname)
echo "<!doctype html><title>$name</title><h1>$name</h1><pre>"
about | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g'
echo "</pre>"
