{{/* Names the pods of a component as a peer. Takes root, component and, for workers, pool. */}}
{{- define "understudy.peer" -}}
- podSelector:
    matchLabels:
      {{- include "understudy.selector" . | nindent 6 }}
{{- end -}}

{{/* Head of a policy, up to its rules. Takes root, component and, for workers, pool. */}}
{{- define "understudy.policyHead" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ list (include "understudy.fullname" .root) .pool .component | compact | join "-" }}
  labels:
    {{- include "understudy.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "understudy.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* Lets metrics be read by Prometheus and, where the pod is sized by them, by the controller. Takes
root and ports; optionally isSized. */}}
{{- define "understudy.metricsRule" -}}
{{- if or .root.Values.networkPolicy.prometheus .root.Values.telemetry.prometheus.enabled }}
- from:
    {{- with .root.Values.networkPolicy.prometheus }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if .root.Values.telemetry.prometheus.enabled }}
    {{- include "understudy.peer" (dict "root" .root "component" "prometheus") | nindent 4 }}
    {{- end }}
  ports:
    {{- range $.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- if .isSized }}
- from:
    {{- include "understudy.peer" (dict "root" .root "component" "controller") | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ include "understudy.metricsPort" .root }}}
{{- end }}
{{- end -}}

{{/* Ways out that every service has: names, and spans where they are collected. Takes the root. */}}
{{- define "understudy.commonEgress" -}}
{{ include "understudy.dnsRule" . }}
{{- if include "understudy.spansGoTo" . }}
- to:
    {{- include "understudy.peer" (dict "root" . "component" (include "understudy.spansGoTo" .)) | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ include "understudy.otlpPort" . }}}
{{- else if .Values.serving.otlpEndpoint }}
{{- with .Values.serving.otlpEndpoint }}
{{ include "understudy.externalRule" (dict "root" $ "port" (include "understudy.portOf" (dict "url" . "default" 4317))) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Way out to the API server. Takes the root. */}}
{{- define "understudy.apiServerRule" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .Values.networkPolicy.apiServer }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Where names are resolved. Takes the root. */}}
{{- define "understudy.dnsRule" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end -}}

{{/* Way out to something outside of the release. Takes root and port. */}}
{{- define "understudy.externalRule" -}}
- ports:
    - {protocol: TCP, port: {{ .port }}}
  {{- with .root.Values.networkPolicy.external }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Port of a URL or of host:port. Takes url and default. */}}
{{- define "understudy.portOf" -}}
{{- $host := contains "://" .url | ternary (urlParse .url).host .url -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default .default -}}
{{- end -}}

{{/* Way out to a Redis: the built-in one, or one of your own. Takes root and role. */}}
{{- define "understudy.redisRule" -}}
{{- $redis := index .root.Values.redis .role -}}
{{- if $redis.externalSecret -}}
{{ include "understudy.externalRule" (dict "root" .root "port" .root.Values.networkPolicy.externalRedisPort) }}
{{- else if $redis.externalUrl -}}
{{ include "understudy.externalRule" (dict "root" .root "port" (include "understudy.portOf" (dict "url" $redis.externalUrl "default" 6379))) }}
{{- else -}}
- to:
    {{- include "understudy.peer" (dict "root" .root "component" (printf "redis-%s" .role)) | nindent 4 }}
  ports:
    - {protocol: TCP, port: 6379}
{{- end -}}
{{- end -}}
