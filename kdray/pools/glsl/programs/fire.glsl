// Flames that rise from the lower edge.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), q = turn(0.8 * (random(0) - 0.5)) * p;
    float tongues = between(1, 1.5, 3.5);
    float lick = fbm(vec2(q.x * tongues, q.y * 0.8 * tongues - 2.0 * iTime) + 10.0 * random(2));
    float heat = lick * 1.6 - 0.5 * (q.y + 1.0) * between(3, 0.5, 1.0) - between(4, 0.0, 0.5) * q.x * q.x + 0.2;
    vec3 cool = mix(vec3(0.9, 0.25, 0.05), ink(5), 0.7), hot = mix(vec3(1.0, 0.95, 0.5), ink(6), 0.3);
    vec3 night = 0.4 * ink(7);
    colour = vec4(mix(mix(night, cool, smoothstep(0.1, 0.5, heat)), hot, smoothstep(0.45, 0.9, heat)), 1);
}
