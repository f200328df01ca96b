{{/* Secret with the URLs and users of the built-in Redis servers: the chart's own or one of yours. */}}
{{- define "understudy.redisSecret" -}}
{{- .Values.redis.usersSecret | default (printf "%s-redis" (include "understudy.fullname" .)) -}}
{{- end -}}

{{/* Not empty where the chart starts the Redis of a role; where no pool runs here nobody has KV chunks.
Takes root and role. */}}
{{- define "understudy.isRedisBuiltIn" -}}
{{- $redis := index .root.Values.redis .role -}}
{{- $isUsed := or (eq .role "control") (include "understudy.pools" .root | fromYamlArray) -}}
{{- if and $isUsed (not (or $redis.externalUrl $redis.externalSecret)) }}true{{ end -}}
{{- end -}}

{{/* URL of a Redis as an environment value: text, or a reference to a Secret. Takes root and role. */}}
{{- define "understudy.redisUrl" -}}
{{- $redis := index .root.Values.redis .role -}}
{{- if $redis.externalSecret -}}
url: {secretKeyRef: {name: {{ $redis.externalSecret }}, key: url}}
{{- else if $redis.externalUrl -}}
url: {{ $redis.externalUrl | quote }}
{{- else -}}
url: {secretKeyRef: {name: {{ include "understudy.redisSecret" .root }}, key: {{ .role }}-url}}
{{- end -}}
{{- end -}}

{{/* What the service of each server may do, as rules of its access list: keys, then commands. */}}
{{- define "understudy.kvRights" -}}
~kv1:* +exists +get +set +unlink
{{- end -}}

{{- define "understudy.controlRights" -}}
~journal1:* +eval +exists +get +set +del +expire +pexpire +rpush +lrange +llen
{{- end -}}
