{{/* Pools with the top-level defaults of their parts merged in, as a YAML list. */}}
{{- define "understudy.pools" -}}
{{- $pools := list -}}
{{- $names := list -}}
{{- range $pool := .Values.pools -}}
{{- if has $pool.name $names -}}
{{- fail (printf "two pools are named %q: give every pool a name of its own" $pool.name) -}}
{{- end -}}
{{- $names = append $names $pool.name -}}
{{- $parts := dict -}}
{{- range $part := list "attention" "experts" "kvstore" -}}
{{- $_ := set $parts $part (mustMergeOverwrite (index $.Values $part | deepCopy) (index $pool $part | default dict)) -}}
{{- end -}}
{{- $pools = append $pools (merge $parts $pool) -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}

{{/* URL of a Redis as an environment value: text, or a reference to a Secret. Takes root and role. */}}
{{- define "understudy.redisUrl" -}}
{{- $redis := index .root.Values.redis .role -}}
{{- if $redis.externalSecret -}}
url: {secretKeyRef: {name: {{ $redis.externalSecret }}, key: url}}
{{- else if $redis.externalUrl -}}
url: {{ $redis.externalUrl | quote }}
{{- else -}}
url: redis://{{ include "understudy.fullname" .root }}-redis-{{ .role }}:6379/0
{{- end -}}
{{- end -}}

{{/* All settings of one service, chart-made and from values; names follow services/X/settings.py. */}}
{{- define "understudy.attentionSettings" -}}
{{- $isRemote := eq .pool.ffn "remote" -}}
{{- $adapters := list -}}
{{- range $name, $path := .pool.adapters -}}
{{- $adapters = append $adapters (printf "%s=%s" $name $path) -}}
{{- end -}}
{{- toYaml (merge (dict
      "pool" .pool.name
      "model" .pool.model
      "modelName" .pool.modelName
      "adapters" (join "," $adapters)
      "ffn" .pool.ffn
      "placement" ($isRemote | ternary (printf "%s-controller:%s" (include "understudy.fullname" .root) (include "understudy.grpcPort" .root)) "")
      "kvstore" (printf "127.0.0.1:%s" (include "understudy.kvstorePort" .root))) .pool.attention.settings) -}}
{{- end -}}

{{- define "understudy.expertsSettings" -}}
{{- toYaml (merge (dict "model" .pool.model) .pool.experts.settings) -}}
{{- end -}}

{{- define "understudy.kvstoreSettings" -}}
{{- $redis := include "understudy.redisUrl" (dict "root" .root "role" "kv") | fromYaml -}}
{{- toYaml (merge (dict "redisUrl" $redis.url) .pool.kvstore.settings) -}}
{{- end -}}

{{- define "understudy.controllerSettings" -}}
{{- $pools := list -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- if eq $pool.ffn "remote" -}}
{{- $replicas := include "understudy.addresses" (dict "root" $ "pool" $pool.name "part" "experts" "replicas" $pool.experts.replicas) | fromJsonArray -}}
{{- $pools = append $pools (dict "pool" $pool.name "replicas" $replicas) -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge (dict "pools" (toJson $pools)) .Values.controller.settings) -}}
{{- end -}}

{{- define "understudy.routerSettings" -}}
{{- $pools := list -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- $workers := include "understudy.addresses" (dict "root" $ "pool" $pool.name "part" "attention" "replicas" $pool.attention.replicas) | fromJsonArray -}}
{{- $pools = append $pools (dict "name" $pool.name "workers" $workers "version_dir" ($pool.versionDir | default "")) -}}
{{- end -}}
{{- $redis := include "understudy.redisUrl" (dict "root" . "role" "control") | fromYaml -}}
{{- toYaml (merge (dict
      "pools" (toJson $pools)
      "httpListen" (printf "0.0.0.0:%s" (include "understudy.httpPort" .))
      "controlRedis" $redis.url
      "controllers" (printf "%s-controller:%s" (include "understudy.fullname" .) (include "understudy.grpcPort" .))
      "allowOpen" false
      "apiKeys" "@/etc/understudy/keys/api-keys.json"
      "journalKey" "@/etc/understudy/keys/journal-key"
      "tenantSecret" "@/etc/understudy/keys/tenant-secret") .Values.router.settings) -}}
{{- end -}}

{{- define "understudy.distillerSettings" -}}
{{- toYaml (merge (dict "directory" "/var/lib/understudy") .Values.distiller.settings) -}}
{{- end -}}
