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

{{/* File with the authority of a Redis of yours, or nothing. Takes root and role. */}}
{{- define "understudy.redisCa" -}}
{{- $redis := index .root.Values.redis .role -}}
{{- if $redis.caConfigMap.name -}}
{{- if not (or $redis.externalSecret (hasPrefix "rediss://" $redis.externalUrl)) -}}
{{- fail (printf "redis.%s.caConfigMap names an authority and nothing there speaks TLS: give an externalUrl that begins with rediss://, or an externalSecret with one" .role) -}}
{{- end -}}
/etc/understudy/redis-ca/ca.crt
{{- end -}}
{{- end -}}

{{- define "understudy.redisCaMount" -}}
{{- if include "understudy.redisCa" . -}}
- {name: redis-ca, mountPath: /etc/understudy/redis-ca, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "understudy.redisCaVolume" -}}
{{- if include "understudy.redisCa" . -}}
{{- $bundle := (index .root.Values.redis .role).caConfigMap -}}
- name: redis-ca
  configMap:
    name: {{ $bundle.name }}
    items: [{key: {{ $bundle.key }}, path: ca.crt}]
{{- end -}}
{{- end -}}

{{/* What the service of each server may do, as rules of its access list: keys, then commands. */}}
{{- define "understudy.kvRights" -}}
~kv1:* +exists +get +set +unlink
{{- end -}}

{{- define "understudy.controlRights" -}}
~journal1:* +eval +exists +get +set +del +expire +pexpire +rpush +lrange +llen
{{- end -}}
