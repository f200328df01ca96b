{{/* Weights that the Job fetches, by name: `folder` in the volume, which what it must hold decides, so
that an upgrade to other weights reads another folder and pods of both revisions find theirs. */}}
{{- define "understudy.fetched" -}}
{{- $fetched := dict -}}
{{- range $model := .Values.weights.models -}}
{{- if hasKey $fetched $model.name -}}
{{- fail (printf "weights.models names %q twice" $model.name) -}}
{{- end -}}
{{- if and (hasPrefix "oci://" $model.source) (not $model.digest) -}}
{{- fail (printf "weights.models: %q comes from a registry and needs the digest of its manifest, not sums" $model.name) -}}
{{- end -}}
{{- $folder := printf "%s-%s" $model.name (cat ($model.digest | default "") ($model.sums | default "" | trim) | sha256sum | trunc 16) -}}
{{- $_ := set $fetched $model.name (merge (dict "folder" $folder) $model) -}}
{{- end -}}
{{- toYaml $fetched -}}
{{- end -}}

{{/* Path that a value names: `weights:<name>/<file>` lies in the folder of what was fetched. Takes root
and path. */}}
{{- define "understudy.path" -}}
{{- if hasPrefix "weights:" (.path | default "") -}}
{{- $parts := splitn "/" 2 (trimPrefix "weights:" .path) -}}
{{- $model := index (include "understudy.fetched" .root | fromYaml) $parts._0 -}}
{{- if not $model -}}
{{- fail (printf "%q names no entry of weights.models" .path) -}}
{{- end -}}
{{- list .root.Values.weights.mountPath $model.folder $parts._1 | compact | join "/" -}}
{{- else -}}
{{- .path -}}
{{- end -}}
{{- end -}}

{{/* Folders of fetched weights that paths lie in, as a JSON list. Takes root and paths. */}}
{{- define "understudy.folders" -}}
{{- $fetched := include "understudy.fetched" .root | fromYaml -}}
{{- $folders := list -}}
{{- range $path := .paths -}}
{{- if hasPrefix "weights:" ($path | default "") -}}
{{- $model := index $fetched (splitn "/" 2 (trimPrefix "weights:" $path))._0 | default dict -}}
{{- $folders = append $folders $model.folder -}}
{{- end -}}
{{- end -}}
{{- $folders | compact | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* What a worker of a pool, or the router, reads of weights, as a JSON list. */}}
{{- define "understudy.attentionPaths" -}}
{{- concat (list .model .attention.settings.tokenizer) (values (.adapters | default dict)) | toJson -}}
{{- end -}}

{{- define "understudy.routerPaths" -}}
{{- $paths := list .Values.router.settings.tokenizer -}}
{{- range .Values.pools }}{{ $paths = append $paths .versionDir }}{{ end -}}
{{- compact $paths | toJson -}}
{{- end -}}

{{/* Claim with weights, or nothing. Takes the root. */}}
{{- define "understudy.weightsClaim" -}}
{{- if .Values.weights.existingClaim -}}
{{- .Values.weights.existingClaim -}}
{{- else if .Values.weights.models -}}
{{- printf "%s-weights" (include "understudy.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* Holds a pod back until what it reads is published, as an init container; nothing where it reads
nothing that is fetched. Takes root, service (whose image it runs in) and paths. */}}
{{- define "understudy.awaitWeights" -}}
{{- with include "understudy.folders" . | fromJsonArray -}}
- name: weights
  image: {{ include "understudy.serviceImage" $ }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  command:
    - python
    - -m
    - understudy.weights
    - wait
    - {{ $.root.Values.weights.mountPath }}
    {{- toYaml . | nindent 4 }}
    - --limit-s={{ $.root.Values.weights.job.deadlineS }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    requests: {cpu: 10m, memory: 128Mi}
    limits: {memory: 256Mi}
  securityContext:
    {{- include "understudy.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: weights, mountPath: {{ $.root.Values.weights.mountPath }}, readOnly: true}
{{- end -}}
{{- end -}}

{{/* UNDERSTUDY_WEIGHTS_MODELS: understudy/weights/settings.py says what each key means. */}}
{{- define "understudy.weightsModels" -}}
{{- $models := list -}}
{{- $fetched := include "understudy.fetched" . | fromYaml -}}
{{- range .Values.weights.models -}}
{{- $model := index $fetched .name -}}
{{- $entry := dict
      "folder" $model.folder
      "source" (hasPrefix "pvc://" $model.source | ternary (printf "file:///sources/%s" (trimPrefix "pvc://" $model.source)) $model.source)
      "max_bytes" (mul (int64 $model.maxGib) 1073741824) -}}
{{- range $key := list "digest" "sums" "endpoint" "region" -}}
{{- with index $model $key }}{{ $_ := set $entry $key . }}{{ end -}}
{{- end -}}
{{- with $model.credentialsSecret }}{{ $_ := set $entry "credentials" (printf "/etc/understudy/credentials/%s" .) }}{{ end -}}
{{- $models = append $models $entry -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/* Claims and Secrets that the Job mounts, as {claims, secrets}. */}}
{{- define "understudy.weightsMounts" -}}
{{- $claims := list -}}
{{- $secrets := list -}}
{{- range .Values.weights.models -}}
{{- if hasPrefix "pvc://" .source }}{{ $claims = append $claims (splitn "/" 2 (trimPrefix "pvc://" .source))._0 }}{{ end -}}
{{- with .credentialsSecret }}{{ $secrets = append $secrets . }}{{ end -}}
{{- end -}}
{{- dict "claims" (uniq $claims | sortAlpha) "secrets" (uniq $secrets | sortAlpha) | toYaml -}}
{{- end -}}

{{/* Ports that sources of weights are reached on, as a JSON list of numbers; none where all are claims.
Whoever has credentials may have to show them at 443 first, for a token. */}}
{{- define "understudy.weightsPorts" -}}
{{- $ports := list -}}
{{- range .Values.weights.models -}}
{{- if not (hasPrefix "pvc://" .source) -}}
{{- $address := .endpoint | default (hasPrefix "oci://" .source | ternary (printf "https://%s" (splitn "/" 2 (trimPrefix "oci://" .source))._0) "https://public") -}}
{{- $ports = append $ports (include "understudy.portOf" (dict "url" $address "default" (hasPrefix "http://" $address | ternary 80 443)) | int) -}}
{{- if or .credentialsSecret (not .endpoint) }}{{ $ports = append $ports 443 }}{{ end -}}
{{- end -}}
{{- end -}}
{{- uniq $ports | sortAlpha | toJson -}}
{{- end -}}
